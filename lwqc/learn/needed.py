"""torch, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

from lwqc.errors import InputError


def require_torch() -> None:
    """Raises InputError where torch is missing."""
    if find_spec("torch") is None:
        raise InputError("gradients need torch: pip install lwqc[torch]")
