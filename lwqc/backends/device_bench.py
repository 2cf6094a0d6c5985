"""Runs models on the device of a target: timing, and building engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lwqc.backends.cuda import SIZE_OPERATORS
from lwqc.backends.provider_options import read_options
from lwqc.backends.target import Target
from lwqc.errors import InputError
from lwqc.runtime.measure import Latency, latencies
from lwqc.runtime.session import Session, SessionSettings, compile_model, placement

Feeds = Mapping[str, NDArray[Any]]
_DEVICE = "cuda"


def device_settings(target: Target, path: Path, options: Mapping[str, str]) -> SessionSettings:
    """How a model is run on the target's device, with the options beside it and these.

    Raises InputError where the device cannot be used.
    """
    reason = target.unmeasured()
    if reason:
        raise InputError(f"target {target.name}: {reason}")
    settings = target.settings()
    beside = read_options(path, target.name)
    return replace(settings, provider_options={**settings.provider_options, **beside, **options})


def device_latencies(
    target: Target,
    paths: Sequence[Path],
    feeds: Feeds,
    seconds: float,
    options: Mapping[str, str],
    *,
    allow_fallback: bool = False,
) -> tuple[list[Latency], dict[str, list[str]]]:
    """Latency of each model with feeds and outputs on the device; what runs elsewhere, by model.

    Raises InputError where nodes run elsewhere or tensors are copied, unless that is accepted.
    """
    sessions, elsewhere = [], {}
    for path in paths:
        settings = device_settings(target, path, options)
        plain = without_graph(settings)
        found = elsewhere[str(path)] = off_device(path, plain)
        if found and not allow_fallback:
            raise InputError(
                f"{path}: {found[0]}, {len(found)} in all; --allow-fallback accepts that"
            )
        session = Session(path, settings, label=str(path))
        session.bind(feeds, _DEVICE, Session(path, plain, label=str(path))(feeds))
        sessions.append(session)
    return latencies(sessions, feeds, seconds), elsewhere


def check_engines(target: Target) -> None:
    """Raises InputError where the target builds no engines, or not on this machine."""
    if not target.profiles:
        raise InputError(f"--engines: target {target.name} builds none")
    if reason := target.unmeasured():
        raise InputError(f"--engines: target {target.name}: {reason}")


def build_engines(target: Target, path: Path, options: Mapping[str, str], output: Path) -> None:
    """Write the model with its engines built (EPContext). Raises InputError."""
    compile_model(path, output, device_settings(target, path, options))


def without_graph(settings: SessionSettings) -> SessionSettings:
    """The settings without CUDA graphs, which need bound feeds."""
    kept = {k: v for k, v in settings.provider_options.items() if "cuda_graph" not in k}
    return replace(settings, provider_options=kept)


def off_device(path: Path, settings: SessionSettings) -> list[str]:
    """Nodes that do not run on the device, sizes of tensors aside, and copies, a line each."""
    found = placement(path, settings)
    lines = [
        f"{op} {name} runs elsewhere" for op, name in found.elsewhere if op not in SIZE_OPERATORS
    ]
    return lines + [f"{found.copies} copies between devices"] * bool(found.copies)
