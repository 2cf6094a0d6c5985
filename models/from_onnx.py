"""Weights of a shipped ONNX file back into the torch definition that it was exported from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

Floats = NDArray[np.float32]


def load_weights(module: nn.Module, path: Path) -> nn.Module:
    """Set every parameter from the initializer of its name; returns the module, ready to run.

    The exporter transposes matrices and folds batch normalisation into the convolution before
    it: matrices are transposed back, and the normalisation keeps only the folded bias.
    Raises KeyError where the file lacks a weight, ValueError where a shape differs.
    """
    graph = onnx.load(path).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            constants[node.input[1]] = constants[node.input[1]].T
    normalisations = {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, norm in normalisations.items():
        _only_bias(norm, constants[f"{_before(name)}.weight_bias"])
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[0] not in normalisations:
            _set(parameter, constants[name], name)
    return module.eval()


def _before(name: str) -> str:
    """The module just before in the same sequence: `4.first.1` -> `4.first.0`."""
    parent, _, index = name.rpartition(".")
    return f"{parent}.{int(index) - 1}" if parent else str(int(index) - 1)


@torch.no_grad()
def _only_bias(norm: nn.BatchNorm2d, bias: Floats) -> None:
    """Make a batch normalisation add a bias and nothing else."""
    if norm.running_var is None:
        raise ValueError("batch normalisation without running statistics")
    norm.running_var.fill_(1 - norm.eps)
    norm.bias.copy_(torch.from_numpy(bias.copy()))


@torch.no_grad()
def _set(parameter: nn.Parameter, value: Floats, name: str) -> None:
    """Copy the value into the parameter."""
    if value.shape != tuple(parameter.shape):
        raise ValueError(f"{name}: expected shape {tuple(parameter.shape)}, found {value.shape}")
    parameter.copy_(torch.from_numpy(value.copy()))
