"""What a step depends on, as text that changes exactly when it does: contents, options, tools."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path

from lwqc.cli.pipeline.steps import WRITTEN, Step
from lwqc.errors import InputError
from lwqc.frontends.convert import files_of
from lwqc.model.saving import data_files_of
from lwqc.plans.preprocess import Preprocess

CONTENT = "content of "  # starts the name of a file's digest
_CODE = ("data", "metric", "loss", "source")  # options that may be `module:callable`
_CALLABLE = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")
_TOOLS = ("lwqc", "onnx", "onnx-ir", "numpy", "scipy")
_CHUNK = 1 << 20


def file_digest(path: Path) -> str:
    """sha256 of a file, or of all files in a folder with their names. Raises InputError."""
    digest = hashlib.sha256()
    try:
        if not path.is_dir():
            _add(digest, path)
            return digest.hexdigest()
        for file in sorted(f for f in path.rglob("*") if f.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0".encode())
            digest.update(file_digest(file).encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _add(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)


def model_files(path: Path) -> list[Path]:
    """A model's file and the data files that it refers to."""
    return [path, *(path.with_name(name) for name in sorted(data_files_of(path)))]


def code_of(step: Step) -> dict[str, str]:
    """Options of a step that are Python code: key -> `module:callable`."""
    found = {}
    for key in _CODE:
        value = str(step.options.get(key, ""))
        if _CALLABLE.fullmatch(value) and not value.startswith("random:") and not _exists(value):
            found[key] = value
    return found


def facts(step: Step, models: Iterable[str]) -> dict[str, str]:
    """Everything that the result of a step depends on, by a name for readers.

    models: files that it reads models from. Raises InputError for a file that cannot be read.
    """
    found = {"command": step.command.name, "output": step.output}
    found |= {f"option {key}": str(value) for key, value in sorted(step.options.items())}
    for model in models:
        if not Path(model).exists():
            raise InputError(f"{step.where}: {model}: no such model file")
        found |= _digests(model_files(Path(model)))
    values = [v for key, v in step.options.items() if key not in WRITTEN]
    texts = [str(t) for v in values for t in (v if isinstance(v, list) else [v])]
    found |= _digests(Path(text) for text in texts if _exists(text))
    found |= _digests(files_of(str(step.options.get("source", ""))))
    found |= _digests(
        f for f in Preprocess.read(step.options.get("preprocess")).files if f.exists()
    )
    found |= _digests(_depended_on(step))
    if "target" in step.options:
        found["speed of the target"] = _measurable(str(step.options["target"]))
    return found | tools()


def _measurable(target: str) -> str:
    """Whether the target's device is here, which decides what is chosen and what is measured."""
    from lwqc.backends.make_target import make_target

    return make_target(target).unmeasured() or "measured here"


def _digests(paths: Iterable[Path]) -> dict[str, str]:
    return {f"{CONTENT}{path}": file_digest(path) for path in paths}


def _exists(text: str) -> bool:
    """Whether an option's value is a file or folder."""
    return bool(text) and len(text) < 4096 and "\0" not in text and os.path.exists(text)


def _depended_on(step: Step) -> Iterator[Path]:
    """Files that the user says Python code reads, and the file of the code itself."""
    if step.depends is None:
        return
    for pattern in step.depends:
        anchor = Path(pattern).anchor
        matches = sorted(Path(anchor or ".").glob(str(Path(pattern).relative_to(anchor))))
        if not matches:
            raise InputError(f"{step.where}: depends {pattern}: no such file")
        yield from matches
    for spec in code_of(step).values():
        module = Path(*spec.partition(":")[0].split("."))
        yield from (f for f in (module.with_suffix(".py"), module / "__init__.py") if f.exists())


@cache
def tools() -> dict[str, str]:
    """Versions of what computes: packages, extensions of lwqc, the processor and its threads."""
    from lwqc.runtime.session import THREADS, VERSION
    from lwqc.runtime.timing_cache import machine

    found = {name: metadata.version(name) for name in _TOOLS}
    found |= {"onnxruntime": VERSION, "Python": platform.python_version()}
    found |= {"source of lwqc": _source_digest(), "processor": machine()}
    found |= {THREADS: os.environ.get(THREADS, "")}
    for package in metadata.distributions():
        points = [p for p in package.entry_points if p.group.startswith("lwqc.")]
        if points:
            name = package.metadata["Name"]
            found[name] = package.version
            found[f"source of {name}"] = _modules_digest({p.module for p in points})
    return found


def _modules_digest(modules: Iterable[str]) -> str:
    """Of the Python files of packages, by the names of modules in them; nothing is imported."""
    files: set[Path] = set()
    for name in {module.partition(".")[0] for module in modules}:
        spec = find_spec(name)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            files |= set(Path(folder).rglob("*.py"))
        if spec is not None and spec.origin is not None:
            files.add(Path(spec.origin))
    return _digest_of((str(file), file.read_bytes()) for file in files)


def _source_digest() -> str:
    """Of lwqc as it is installed: one version may be edited in place."""
    return _digest_of(_sources(resources.files("lwqc"), ""))


def _digest_of(contents: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(contents):
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\0".encode())
    return digest.hexdigest()[:16]


def _sources(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _sources(entry, f"{name}/")
        elif name.endswith((".py", ".toml", ".txt")):
            yield name, entry.read_bytes()
