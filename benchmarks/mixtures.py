"""Mixtures of experts as PyTorch exports them, of random weights: float, onnxruntime's tools, lwqc.

    python -m benchmarks.mixtures

Layers in the manner of Mixtral: a router, the best experts of each token, each a gated
feed-forward. One thread, runs in turns, medians; memory is the peak of a fresh process that loads
the file and runs it once on the larger shape. Error: of the output, over its variance, on other
inputs than those of the calibration. The last row of each is onnxruntime's operator for mixtures,
written by hand, which no tool of it makes of such a file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

import lwqc
from benchmarks.door import processor
from benchmarks.lstm import medians

LAYERS = 2
# (width, hidden, experts, of which a token takes)
SIZES = ((512, 1024, 8, 2), (512, 512, 32, 4))
TOKENS = (1, 128)
_MEMORY = """
import sys, numpy, onnxruntime
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
before = peak()
session.run(None, {"x": numpy.load(sys.argv[2])})
print(before, peak())
"""


class Layer(nn.Module):
    """Tokens [n, width] plus what their best experts make of them."""

    def __init__(self, width: int, hidden: int, experts: int, taken: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, 2 * hidden, width) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, width, hidden) * hidden**-0.5)
        self.taken = taken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the same shape."""
        normed = self.norm(x)
        shares, places = self.router(normed).softmax(-1).topk(self.taken, -1)
        shares = shares / shares.sum(-1, keepdim=True)
        chosen = places.reshape(-1)
        rows = normed.repeat_interleave(self.taken, 0).unsqueeze(-1)
        gate, linear = torch.bmm(self.up[chosen], rows).squeeze(-1).chunk(2, -1)
        made = nn.functional.silu(gate) * linear
        made = torch.bmm(self.down[chosen], made.unsqueeze(-1)).squeeze(-1)
        weighed = (made * shares.reshape(-1, 1)).reshape(-1, self.taken, x.shape[-1])
        return x + weighed.sum(1)


def exported(sizes: tuple[int, int, int, int], path: Path) -> nn.Module:
    """The layers, as torch exports them."""
    torch.manual_seed(0)
    net = nn.Sequential(*(Layer(*sizes) for _ in range(LAYERS))).eval()
    tokens = torch.export.Dim("n", min=1)
    torch.onnx.export(
        net,
        (torch.randn(5, sizes[0]),),
        path,
        dynamo=True,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: tokens},),
        external_data=False,
        verbose=False,
    )
    return net


def by_hand(net: nn.Module, bits: int, path: Path, block: int = 32) -> None:
    """The same with onnxruntime's operator for mixtures, weights rounded to nearest."""
    helper, arrays = onnx.helper, onnx.numpy_helper
    nodes, stored, last = [], [], "x"

    def coded(weight: np.ndarray, name: str) -> list[str]:
        experts, rows, columns = weight.shape
        blocks = weight.reshape(experts, rows, columns // block, block)
        middle = 2 ** (bits - 1)
        scales = np.abs(blocks).max(-1) / (middle - 1)
        codes = np.clip(np.rint(blocks / scales[..., None]) + middle, 0, 2 * middle - 1)
        codes = codes.astype(np.uint8).reshape(experts, rows, columns)
        if bits == 4:
            codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
        stored.extend(arrays.from_array(a, f"{name}.{k}") for k, a in (("q", codes), ("s", scales)))
        return [f"{name}.q", f"{name}.s"]

    for i, layer in enumerate(net):
        state = {k: v.detach().numpy() for k, v in layer.named_parameters()}
        gain, router = state["norm.weight"], np.ascontiguousarray(state["router.weight"].T)
        stored += [arrays.from_array(gain, f"gain{i}"), arrays.from_array(router, f"router{i}")]
        up = state["up"]  # the operator's gate and linear rows take turns
        up = np.stack(np.split(up, 2, 1), 2).reshape(up.shape)
        nodes += [
            helper.make_node(
                "RMSNormalization",
                [last, f"gain{i}"],
                [f"normed{i}"],
                epsilon=float(torch.finfo(torch.float32).eps),
            ),
            helper.make_node("MatMul", [f"normed{i}", f"router{i}"], [f"scores{i}"]),
            helper.make_node(
                "QMoE",
                [
                    *(f"normed{i}", f"scores{i}", *coded(up, f"up{i}"), ""),
                    *coded(state["down"], f"down{i}"),
                ],
                [f"made{i}"],
                domain="com.microsoft",
                k=layer.taken,
                activation_type="swiglu",
                activation_alpha=1.0,
                activation_beta=0.0,
                swiglu_fusion=1,
                normalize_routing_weights=1,
                expert_weight_bits=bits,
                block_size=block,
            ),
            helper.make_node("Add", [last, f"made{i}"], [f"x{i}"]),
        ]
        last = f"x{i}"
    nodes[-1].output[0] = "y"
    width = state["norm.weight"].shape[0]
    given, made = (
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", width])] for n in ("x", "y")
    )
    graph = helper.make_graph(nodes, "mixture", given, made, stored)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), path)


def peak_mb(path: Path, feed: np.ndarray) -> float:
    """What a run takes beside what a fresh process takes that has loaded the model."""
    np.save(path.with_suffix(".npy"), feed)
    command = [sys.executable, "-c", _MEMORY, str(path), str(path.with_suffix(".npy"))]
    before, after = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    return (int(after) - int(before)) / 1e3


def four_bits(source: Path, path: Path) -> None:
    """onnxruntime's tool for weights alone."""
    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=4, block_size=32, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))


def main() -> None:
    print(processor(), f"onnxruntime {ort.__version__}, torch {torch.__version__}")
    heads = [f"{n} x" for n in TOKENS]
    times = " | ".join(f"{n} tokens ms" for n in TOKENS)
    columns = f"{times} | {' | '.join(heads)} | run MB | error"
    print(f"| width, hidden, experts, taken | tool | MB | {columns} |")
    print("| --- | --- |" + " ---: |" * 7)
    for sizes in SIZES:
        rng = np.random.default_rng(1)
        data = [{"x": rng.standard_normal((64, sizes[0]), np.float32)} for _ in range(8)]
        with tempfile.TemporaryDirectory() as folder:
            tools = (
                "float",
                "onnxruntime quantize_dynamic",
                "onnxruntime MatMulNBits, 4 bits",
                "lwqc --no-quantize",
                "lwqc",
                "lwqc quantize --bits 4",
                "by hand: QMoE, 8 bits",
                "by hand: QMoE, 4 bits",
            )
            paths = [Path(folder) / f"{i}.onnx" for i in range(len(tools))]
            net = exported(sizes, paths[0])
            ready = Path(folder) / "ready.onnx"
            quant_pre_process(paths[0], ready)  # else it stops on the exporter's Gemm
            quantize_dynamic(ready, paths[1], per_channel=True)
            four_bits(paths[0], paths[2])
            shapes = [{"n": n} for n in TOKENS]
            lwqc.compress(paths[0], recipe="clean").save(paths[3])
            lwqc.compress(paths[0], data=data, shapes=shapes).save(paths[4])
            lwqc.quantize(paths[0], bits=4, data=data).save(paths[5])
            by_hand(net, 8, paths[6])
            by_hand(net, 4, paths[7])
            feeds = [{"x": rng.standard_normal((n, sizes[0]), np.float32)} for n in TOKENS]
            known = [medians(paths, one) for one in feeds]
            for row, (tool, path) in enumerate(zip(tools, paths, strict=True)):
                own = [column[row] for column in known]
                ratios = [column[0] / column[row] for column in known]
                error = lwqc.verify(paths[0], path, data=feeds[-1:])["y"].error
                print(
                    f"| {', '.join(map(str, sizes))} | {tool} | {path.stat().st_size / 1e6:.1f} | "
                    + " | ".join(f"{ms:.3f}" for ms in own)
                    + " | "
                    + " | ".join(f"{x:.2f}" for x in ratios)
                    + f" | {peak_mb(path, feeds[-1]['x']):.0f} | {error:.5f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
