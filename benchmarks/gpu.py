"""GPU: models in float32, in float16 by onnxruntime's tool, and as lwqc writes them.

    pip install onnxruntime-gpu && python -m benchmarks.gpu --out docs/gpu.json

Needs an NVIDIA GPU and onnxruntime-gpu; says so and ends with status 2 where one is missing. Every
file and shape is run in a process of its own, with feeds and outputs on the device; medians.
`--rehearse` tries the script out on the CPU with small models; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import gpu_models
from benchmarks.gpu_models import FULL, SMALL, Sizes
from lwqc.backends.device_bench import device_settings, off_device, without_graph
from lwqc.backends.make_target import make_target
from lwqc.compile.execute import execute
from lwqc.decide.compress import open_version
from lwqc.decide.float_plan import with_floats
from lwqc.decide.lower import lower_plan
from lwqc.decide.planning import uniform
from lwqc.errors import LwqcError
from lwqc.model import io
from lwqc.plans.goals import Goals
from lwqc.runtime.session import VERSION, Session, SessionSettings

Feeds = Mapping[str, Any]
RUNS = 30
FORMS = ("float32", "float16 (onnxruntime)", "lwqc float16", "lwqc 4 bit")


@dataclass(frozen=True)
class Case:
    """One model. shapes: label -> feeds and samples (or tokens) in them."""

    name: str
    make: Callable[[Path], object]
    shapes: Mapping[str, tuple[Callable[[], Feeds], int]]


def cases(sizes: Sizes) -> list[Case]:
    """What is measured."""
    small = sizes is SMALL
    prompt, past = (16, 16) if small else (512, 512)
    batches = (1,) if small else (1, 8, 64)
    images = {f"batch {b}": ((lambda b=b: gpu_models.image_feeds(sizes, b)), b) for b in batches}
    tokens = {
        f"prefill {prompt}": (lambda: gpu_models.decoder_feeds(sizes, 1, prompt, 0), prompt),
        f"decode after {past}": (lambda: gpu_models.decoder_feeds(sizes, 1, 1, past), 1),
    }
    known = [
        Case("ResNet-50", lambda p: gpu_models.resnet(p, sizes), images),
        Case("ViT-B/16", lambda p: gpu_models.vit(p, sizes), images),
        Case("decoder 1B", lambda p: gpu_models.decoder(p, sizes), tokens),
    ]
    if not small:
        sentences = {f"batch {b}x128": ((lambda b=b: _sentences(b, 128)), b) for b in batches}
        known.insert(0, Case("all-MiniLM-L6-v2", _minilm, sentences))
    return known


def _minilm(path: Path) -> None:
    from models import minilm

    minilm.export(path)


def _sentences(batch: int, tokens: int) -> Feeds:
    rng = np.random.default_rng(2)
    return {
        "input_ids": rng.integers(1000, 20000, (batch, tokens)),
        "attention_mask": np.ones((batch, tokens), np.int64),
    }


def ort_float16(model: Path, out: Path) -> None:
    """The converter that comes with onnxruntime."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto = onnx.load(model)
    done = convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=True)
    onnx.save(done, out, save_as_external_data=True, location=f"{out.stem}.data")


def lwqc_file(model: Path, out: Path, feeds: Feeds, bits: int | None) -> None:
    """What `lwqc lower --target cuda`, or `lwqc quantize --target cuda --bits`, writes."""
    work = open_version(str(model), data=[dict(feeds)], target="cuda")
    plan = lower_plan(work) if bits is None else with_floats(work, uniform(work, bits, "none"))
    io.save(execute(work, Goals(), plan).model, out)


def measure(path: Path, feeds: Feeds, samples: int, rehearse: bool) -> dict[str, Any]:
    """One file and shape, in this process."""
    target = make_target("cuda")
    settings = SessionSettings() if rehearse else device_settings(target, path, {})
    elsewhere = [] if rehearse else off_device(path, without_graph(settings))
    session = Session(path, settings, label=str(path))
    outputs = session(feeds)
    first = np.asarray(next(iter(outputs.values()))).astype(np.float64).ravel()
    session.bind(feeds, "cpu" if rehearse else "cuda", outputs)
    for _ in range(3):
        session.seconds({})
    times = [session.seconds({}) for _ in range(3 if rehearse else RUNS)]
    median = statistics.median(times)
    return {
        "latency_ms": median * 1e3,
        "per_second": samples / median,
        "memory_mb": None if rehearse else _memory_mb(),
        "elsewhere": elsewhere,
        "first": first[:4096].tolist(),
    }


def _memory_mb() -> float | None:
    command = [
        "nvidia-smi",
        "--query-compute-apps=pid,used_memory",
        "--format=csv,noheader,nounits",
    ]
    try:
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    rows = (line.split(",") for line in text.splitlines() if "," in line)
    return next((float(mb) for pid, mb in rows if int(pid) == os.getpid()), None)


def in_process(path: Path, case: str, shape: str, rehearse: bool) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", str(path), case, shape]
    command += ["--rehearse"] * rehearse
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["failed"])[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def files(case: Case, folder: Path) -> dict[str, Path | str]:
    """The forms of a model, or why one could not be made."""
    model = folder / "model.onnx"
    case.make(model)
    feeds = next(iter(case.shapes.values()))[0]()
    made: dict[str, Path | str] = {"float32": model}
    makers: dict[str, Callable[[Path], None]] = {
        FORMS[1]: lambda out: ort_float16(model, out),
        FORMS[2]: lambda out: lwqc_file(model, out, feeds, None),
    }
    if "decoder" in case.name:
        makers[FORMS[3]] = lambda out: lwqc_file(model, out, feeds, 4)
    for i, (form, make) in enumerate(makers.items()):
        out = folder / f"form{i}.onnx"
        # The peer's converter raises anything; what else we raise is a fault of ours.
        expected = Exception if form == FORMS[1] else LwqcError
        try:
            make(out)
            made[form] = out
        except expected as error:
            made[form] = " ".join(str(error).split())[:200]
    return made


def run(sizes: Sizes, rehearse: bool, folder: Path | None) -> list[dict[str, Any]]:
    """All rows."""
    rows = []
    for case in cases(sizes):
        with tempfile.TemporaryDirectory(dir=folder) as made_in:
            try:
                made = files(case, Path(made_in))
            except ImportError as error:  # a model's package may be missing
                reason = " ".join(str(error).split())[:200]
                rows.append({"model": case.name, "error": reason})
                continue
            for shape in case.shapes:
                reference: list[float] = []
                for form, file in made.items():
                    row = {"model": case.name, "shape": shape, "form": form}
                    found = (
                        {"error": file}
                        if isinstance(file, str)
                        else in_process(file, case.name, shape, rehearse)
                    )
                    first = found.pop("first", [])
                    reference = reference or first
                    rows.append({**row, **found, "divergence": _divergence(reference, first)})
                    print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def _divergence(reference: list[float], found: list[float]) -> float | None:
    """1 - cosine of the first output."""
    if not found or len(found) != len(reference):
        return None
    a, b = np.array(reference), np.array(found)
    return float(1 - a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | shape | form | ms | per second | MB | 1 - cosine | not on the device |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "error" in row:
            place = f"| {row['model']} | {row.get('shape', '')} | {row.get('form', '')} "
            lines.append(f"{place}| {row['error']} | | | | |")
            continue
        memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        drop = "" if row["divergence"] is None else f"{row['divergence']:.1e}"
        lines.append(
            f"| {row['model']} | {row['shape']} | {row['form']} | {row['latency_ms']:.2f} | "
            f"{row['per_second']:.0f} | {memory} | {drop} | {len(row['elsewhere'])} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    parser.add_argument("--folder", type=Path, help="where to put 10 GB for a while")
    parser.add_argument("--rehearse", action="store_true", help="small models on the CPU")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    sizes = SMALL if given.rehearse else FULL
    if given.child:
        path, name, shape = given.child
        feeds, samples = next(c for c in cases(sizes) if c.name == name).shapes[shape]
        print(json.dumps(measure(Path(path), feeds(), samples, given.rehearse)))
        return
    reason = "" if given.rehearse else make_target("cuda").unmeasured()
    if reason:
        print(f"benchmarks.gpu: {reason}", file=sys.stderr)
        raise SystemExit(2)
    rows = run(sizes, given.rehearse, given.folder)
    print(f"onnxruntime {VERSION}" + (", rehearsal: times mean nothing" * given.rehearse) + "\n")
    print(table(rows))
    if given.out:
        given.out.write_text(json.dumps({"onnxruntime": VERSION, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
