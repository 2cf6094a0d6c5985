from __future__ import annotations

import os
from pathlib import Path

import pytest

ZOO = sorted((Path(__file__).parent / "zoo").glob("*.onnx"))


@pytest.fixture(autouse=True, scope="session")
def timings(tmp_path_factory):
    """Times of kernels are kept for one run of the tests."""
    os.environ["LWQC_CACHE"] = str(tmp_path_factory.mktemp("timings"))


@pytest.fixture(params=ZOO, ids=lambda p: p.stem)
def skeleton(request) -> Path:
    """Each architecture of the zoo in turn, as a file without weights."""
    return request.param
