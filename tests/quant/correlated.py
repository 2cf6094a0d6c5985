"""A layer whose inputs are correlated, as those of real layers are."""

from __future__ import annotations

import numpy as np

from tests.build import normal


def inputs(rows: int, k: int, seed: int = 0) -> np.ndarray:
    """Rows of k inputs, float64: k/4 latent factors, noise, channels of unequal size, a mean.

    The seed fixes the channels; the first rows do not depend on how many there are.
    """
    channels = np.random.default_rng(seed)
    factors = channels.standard_normal((k // 4 + 1, k)) / np.sqrt(k // 4 + 1)
    size = np.exp(0.7 * channels.standard_normal(k))
    rng = np.random.default_rng(seed + 1)
    drawn = rng.standard_normal((rows, len(factors) + k))
    latent, noise = drawn[:, : len(factors)], drawn[:, len(factors) :]
    x = (latent @ factors + 0.3 * noise) * size
    return np.maximum(x, -0.2 * np.abs(x))


def layer(n: int, k: int, seed: int = 0, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A float32 weight [n, k] with a few large values, and the Gram matrix [k, k] of its inputs."""
    weight = normal(n, k, seed=seed, scale=k**-0.5)
    weight[np.random.default_rng(seed).random((n, k)) < 0.002] *= 5
    x = inputs(rows or 4 * k, k, seed)
    return weight, x.T @ x / len(x)


def energy(error: np.ndarray, gram: np.ndarray) -> float:
    """tr(E H Eᵀ)."""
    return float(np.vdot(error.astype(np.float64) @ gram, error))
