"""A 336M-parameter decoder (1.3 GB, random weights) to 4 bit: time, peak memory, size.

`python -m benchmarks.decoder` makes the model, runs lwqc and onnxruntime's MatMulNBits tool, each
in a process of its own, and prints a markdown table. Nothing is kept.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

LAYERS, WIDTH, HIDDEN, VOCABULARY = 21, 1024, 4096, 35072
SHAPE = (LAYERS, WIDTH, HIDDEN, VOCABULARY)
ROUNDS = 3


def build(path: Path, shape: tuple[int, int, int, int] = SHAPE, *, sparse: bool = False) -> int:
    """Write the decoder with external data; returns its number of parameters.

    shape: layers, width, hidden width and vocabulary. sparse: the weights are holes in the file,
    which take no room on the disk.

    The graph is a stack of attention-free blocks with the weights of a decoder: what is measured
    is reading, quantizing and writing weights, not running the model.
    """
    layers, width, hidden, vocabulary = shape
    rng = np.random.default_rng(0)
    nodes, initializers, offset = [], [], 0
    data = path.with_suffix(".onnx.data")
    count = 0

    def weight(name: str, shape: tuple[int, ...], file) -> str:
        nonlocal offset, count
        length = 4 * int(np.prod(shape))
        if sparse:
            file.truncate(offset + length)
        else:
            values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            file.write(values.tobytes())
        tensor = TensorProto(
            name=name,
            data_type=TensorProto.FLOAT,
            dims=shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", data.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        initializers.append(tensor)
        offset += length
        count += int(np.prod(shape))
        return name

    with data.open("wb") as file:
        nodes.append(
            helper.make_node("Gather", [weight("embed", (vocabulary, width), file), "ids"], ["x0"])
        )
        ones = helper.make_tensor("ones", TensorProto.FLOAT, [width], np.ones(width, np.float32))
        initializers.append(ones)
        for i in range(layers):
            x = f"x{i}"
            nodes.append(helper.make_node("LayerNormalization", [x, "ones"], [f"n{i}"]))
            for name in "qkv":
                w = weight(f"l{i}.{name}", (width, width), file)
                nodes.append(helper.make_node("MatMul", [f"n{i}", w], [f"{name}{i}"]))
            nodes.append(helper.make_node("Mul", [f"q{i}", f"k{i}"], [f"s{i}"]))
            nodes.append(helper.make_node("Add", [f"s{i}", f"v{i}"], [f"a{i}"]))
            w = weight(f"l{i}.o", (width, width), file)
            nodes.append(helper.make_node("MatMul", [f"a{i}", w], [f"o{i}"]))
            nodes.append(helper.make_node("Add", [x, f"o{i}"], [f"y{i}"]))
            nodes.append(helper.make_node("LayerNormalization", [f"y{i}", "ones"], [f"m{i}"]))
            up, down = (
                weight(f"l{i}.up", (width, hidden), file),
                weight(f"l{i}.down", (hidden, width), file),
            )
            nodes.append(helper.make_node("MatMul", [f"m{i}", up], [f"u{i}"]))
            nodes.append(helper.make_node("Relu", [f"u{i}"], [f"r{i}"]))
            nodes.append(helper.make_node("MatMul", [f"r{i}", down], [f"d{i}"]))
            nodes.append(helper.make_node("Add", [f"y{i}", f"d{i}"], [f"x{i + 1}"]))
        head = weight("head", (width, vocabulary), file)
        nodes.append(helper.make_node("MatMul", [f"x{layers}", head], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "seq", vocabulary])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, path)
    return count


LWQC = [
    sys.executable,
    "-m",
    "lwqc.cli",
    "quantize",
    "{model}",
    "-o",
    "{out}",
    "--bits",
    "4",
    "--no-verify",
    "--external-data",
]
PLAIN = [*LWQC, "--no-search"]  # scales from each block's range, as onnxruntime's tool does
ORT = [
    sys.executable,
    "-m",
    "onnxruntime.quantization.matmul_nbits_quantizer",
    "--input_model",
    "{model}",
    "--output_model",
    "{out}",
    "--block_size",
    "32",
    "--bits",
    "4",
]


def run(
    command: list[str], model: Path, out: Path, **variables: str
) -> tuple[float, float, float, float]:
    """Seconds, processor seconds, peak resident MB and output MB of one command.

    The peak is that of the larger process where a command starts another. variables: of its
    environment.
    """
    filled = [part.format(model=model, out=out) for part in command]
    start = time.perf_counter()
    process = subprocess.Popen(
        filled,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"failed with status {status}: {' '.join(filled)}")
    size = sum(f.stat().st_size for f in out.parent.iterdir())
    processor = usage.ru_utime + usage.ru_stime
    return seconds, processor, usage.ru_maxrss / 1e3, size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, default=None, help="where to put 4 GB for a while")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        model = Path(folder) / "decoder.onnx"
        parameters = build(model)
        total = sum(f.stat().st_size for f in Path(folder).iterdir())
        print(f"{parameters / 1e6:.0f}M parameters, {total / 1e9:.2f} GB")
        tools = {
            "lwqc": (LWQC, {}),
            "lwqc in numpy alone": (LWQC, {"LWQC_NATIVE": "off"}),
            "lwqc --no-search": (PLAIN, {}),
            "onnxruntime": (ORT, {}),
        }
        rows: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in tools}
        for i in range(arguments.rounds):
            for name in tools if i % 2 == 0 else reversed(tools):
                command, variables = tools[name]
                with tempfile.TemporaryDirectory(dir=folder) as target:
                    out = Path(target) / "out.onnx"
                    rows[name].append(run(command, model, out, **variables))
        print("\n| tool | seconds | processor s | peak MB | size MB |")
        print("| --- | ---: | ---: | ---: | ---: |")
        medians = {name: np.median(np.array(found), axis=0) for name, found in rows.items()}
        for name, (seconds, processor, peak, size) in medians.items():
            print(f"| {name} | {seconds:.1f} | {processor:.1f} | {peak:.0f} | {size:.0f} |")
        peer = medians.pop("onnxruntime")
        for name, found in medians.items():
            print(
                f"\n{name}: {found[0] / peer[0]:.2f} of onnxruntime's time, "
                f"{found[1] / peer[1]:.2f} of its processor time, "
                f"{peer[2] / found[2]:.2f} times less memory"
            )
        print("\nonnxruntime leaves the embedding in float; lwqc quantizes it too")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
