"""Digests of what the commands write, to show that a change of the code changed no byte.

    python -m benchmarks.goldens FILE [--zoo] [--only COMMAND ...]      # write the digests
    python -m benchmarks.goldens FILE --against OLD                    # and say what differs

Shipped models take all commands, architectures of the zoo (with `--zoo`, about 40 minutes) those
that need no data. Only commands that time nothing are among them: their output is the same each
time. Processors are forced, so that digests can be compared between machines of one runtime.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from lwqc import cli
from tests.zoo.materialize import materialize

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "tests" / "zoo"
VNNI, AVX2 = ["--target", "cpu-vnni"], ["--target", "cpu-avx2"]
COMMANDS: dict[str, list[str]] = {
    "clean": ["opt", "{m}", "-p", "clean", "-o", "{o}"],
    "w8": ["quantize", "{m}", "-o", "{o}", "--bits", "8", *VNNI],
    "w4": ["quantize", "{m}", "-o", "{o}", "--bits", "4", *AVX2],
    "w8a8": ["quantize", "{m}", "-o", "{o}", "--bits", "8", "--activations", "dynamic", *AVX2],
    "inspect": ["inspect", "{m}", "--groups", "--branches", "--json"],
    "cuda": ["lower", "{m}", "-o", "{o}", "--target", "cuda", "--allow-fallback"],
    "tensorrt": ["lower", "{m}", "-o", "{o}", "--target", "tensorrt", "--allow-fallback"],
    "static": ["quantize", "{m}", "-o", "{o}", "--bits", "8", "--activations", "static",
               "--data", "{d}", *VNNI],
    "gptq": ["quantize", "{m}", "-o", "{o}", "--bits", "4", "--method", "gptq",
             "--data", "{d}", *AVX2],
    "prune": ["prune", "{m}", "-o", "{o}", "--ratio", "0.2", "--score", "l2", "--data", "{d}",
              *VNNI],
    "drop": ["drop", "{m}", "-o", "{o}", "--branches", "1", "--data", "{d}", *VNNI],
    "plan": ["plan", "{m}", "-o", "{o}", "--recipe", "w8a8-static", "--data", "{d}", *VNNI],
}  # fmt: skip
SHIPPED = {
    "lwqc/cli/demo/digits.onnx": "lwqc.cli.demo.digits:calibration",
    "models/glyph_mobilenet.onnx": "models.glyphs:calibration",
    "models/glyph_resnet.onnx": "models.glyphs:calibration",
    "models/glyph_vit.onnx": "models.glyphs:calibration",
    "models/stdlib_lm.onnx": "models.stdlib_lm:calibration",
}


def main() -> None:
    """Write digests, and compare them where older ones are given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--zoo", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--against", type=Path)
    parser.add_argument("--models", nargs="*", help="those whose names begin so")
    options = parser.parse_args()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model, data in _models(Path(folder), options.zoo):
            if options.models and not name.startswith(tuple(options.models)):
                continue
            for command in options.only:
                if data or "{d}" not in COMMANDS[command]:
                    key = f"{name} {command}"
                    found[key] = _digest(command, model, data, Path(folder) / "out")
                    print(key, found[key], flush=True)
    options.file.write_text(json.dumps(found, indent=1) + "\n")
    if options.against is not None:
        sys.exit(_differ(json.loads(options.against.read_text()), found))


def _models(folder: Path, zoo: bool) -> Iterator[tuple[str, Path, str]]:
    for path, data in SHIPPED.items():
        yield Path(path).stem, ROOT / path, data
    for skeleton in sorted(ZOO.glob("*.onnx")) if zoo else ():
        model = folder / skeleton.name
        onnx.save(materialize(skeleton, whole=True), model)
        yield skeleton.stem, model, ""
        model.unlink()


def _digest(command: str, model: Path, data: str, out: Path) -> str:
    """Exit code and a digest of all that was written, or of the error."""
    out.mkdir()
    target = out / ("plan.json" if command == "plan" else "out.onnx")
    words = [w.format(m=model, o=target, d=data) for w in COMMANDS[command]]
    said, printed = io.StringIO(), io.StringIO()
    sys.argv = ["lwqc", *words]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        try:
            cli.main()
            code: object = 0
        except SystemExit as exit_:
            code = exit_.code
    digest = hashlib.sha256()
    if "--json" in words:
        digest.update(printed.getvalue().replace(str(model.parent), "").encode())
    for file in sorted(out.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
        file.unlink()
    out.rmdir()
    if code not in (0, None):
        error = said.getvalue().strip().splitlines()[-1:]
        return f"exit {code}: {''.join(error).replace(str(model.parent), '')}"
    return digest.hexdigest()


def _differ(old: dict[str, str], new: dict[str, str]) -> int:
    changed: Sequence[str] = [k for k in sorted(old.keys() & new.keys()) if old[k] != new[k]]
    for key in changed:
        print(f"differs: {key}: {old[key][:90]} -> {new[key][:90]}")
    print(f"{len(changed)} of {len(old.keys() & new.keys())} differ")
    return bool(changed)


if __name__ == "__main__":
    main()
