from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lwqc.model import io
from tests.build import model, normal
from tests.short import short


class Project:
    """A folder with a model, data and a file for `lwqc run`."""

    def __init__(self, folder: Path, run) -> None:
        self.folder, self.command = folder, run
        self.write_model()
        self.write_data()

    def write_model(self, seed: int = 0) -> None:
        nodes = [
            ("MatMul", ["x", "w1"], "h", {}),
            ("Relu", ["h"], "r", {}),
            ("MatMul", ["r", "w2"], "y", {}),
        ]
        weights = {"w1": normal(96, 128, seed=seed, scale=0.1), "w2": normal(128, 64, scale=0.1)}
        io.save(model(nodes, weights, {"x": ["batch", 96]}, ["y"]), self.folder / "model.onnx")

    def write_data(self, seed: int = 0) -> None:
        np.savez(self.folder / "data.npz", x=normal(8, 96, seed=seed))

    def write(self, text: str) -> None:
        (self.folder / "pipeline.toml").write_text(text)

    def run(self, *options: str):
        """(exit code, stdout, stderr)."""
        return self.command("run", self.folder / "pipeline.toml", *options)

    def ran(self, *options: str) -> dict[str, bool]:
        """Step -> whether it ran, of a run that must succeed."""
        code, text, error = self.run("--json", *options)
        assert code == 0, error
        return {step["name"]: step["ran"] for step in json.loads(text)["steps"]}

    def refused(self, *words: str) -> None:
        """Exit code 2 with one line on stderr that holds these words, beside what steps say."""
        code, _, error = self.run()
        assert code == 2, error
        (line,) = [one for one in error.splitlines() if one.startswith("lwqc: ")]
        for word in words:
            assert word in line

    def text_of(self, path: str) -> str:
        return (self.folder / path).read_text()


@pytest.fixture
def project(tmp_path, run, monkeypatch):
    short(monkeypatch)
    monkeypatch.chdir("/")  # nothing depends on where it is called from
    return Project(tmp_path, run)
