"""Writes model.onnx, which stands for a model of yours: the digit classifier of lwqc."""

from importlib import resources
from pathlib import Path

Path("model.onnx").write_bytes((resources.files("lwqc.cli.demo") / "digits.onnx").read_bytes())
