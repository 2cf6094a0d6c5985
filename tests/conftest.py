from __future__ import annotations

from pathlib import Path

import pytest

ZOO = sorted((Path(__file__).parent / "zoo").glob("*.onnx"))


@pytest.fixture(params=ZOO, ids=lambda p: p.stem)
def skeleton(request) -> Path:
    """Each architecture of the zoo in turn, as a file without weights."""
    return request.param
