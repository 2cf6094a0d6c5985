"""Texts as inputs of a model; needs the extra `lwqc[data]`, unless the model takes strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.model.needed import needed
from lwqc.plans.preprocess import Preprocess
from lwqc.runtime.sources.folders import Found
from lwqc.runtime.sources.images import file_labels
from lwqc.runtime.sources.labels import Labels, text_of
from lwqc.runtime.sources.samples import Arrays, Inputs, check_keys, fed, shape_text

KEYS = ("tokenizer", "length", "padding")
IDS, MASK, TYPES, POSITIONS = "input_ids", "attention_mask", "token_type_ids", "position_ids"
_NAMES = (IDS, MASK, TYPES, POSITIONS)  # as Hugging Face's models have them
_USUAL = "tokenizer.json"
_NUMBERS = (ir.DataType.INT32, ir.DataType.INT64)


class Encode:
    """Texts become the inputs of a model: tokens, or the strings themselves."""

    def __init__(self, inputs: Inputs, settings: Preprocess, folders: Sequence[Path]) -> None:
        """folders: where the tokenizer may be. Raises InputError for what fits no model."""
        self._inputs = fed(inputs, settings)
        self.settings = settings
        self._strings = [n for n, v in self._inputs.items() if v.dtype == ir.DataType.STRING]
        self.alike = True
        if self._strings:
            if len(self._inputs) > 1 or any(settings.given.get(key) for key in KEYS):
                raise InputError(
                    f"input {self._strings[0]}: takes texts as they are: leave out the tokenizer, "
                    "and fill other inputs"
                )
            return
        self._roles = _roles(self._inputs)
        self._tokenizer, path = _tokenizer(settings, folders)
        self.settings = self._resolved(settings, path)
        self.alike = self.settings.padding == "length" or MASK in self._roles

    def _resolved(self, settings: Preprocess, path: Path) -> Preprocess:
        value = self._inputs[self._roles[IDS]]
        fixed = value.shape[1] if value.shape is not None and len(value.shape) > 1 else None
        fixed = fixed if isinstance(fixed, int) else None
        if fixed is not None and settings.length not in (None, fixed):
            raise InputError(
                f"input {value.name} {shape_text(value)}: length={settings.length} does not fit; "
                f"it takes length={fixed}"
            )
        own = (self._tokenizer.truncation or {}).get("max_length")
        length = settings.length or fixed or own
        padding = settings.padding or ("length" if fixed is not None else "longest")
        if padding == "length" and length is None:
            raise InputError("--preprocess padding=length: write length=TOKENS too")
        pads = self._tokenizer.padding or {}
        self._pad, self._left = pads.get("pad_id", 0), pads.get("direction") == "left"
        self._tokenizer.no_padding()
        if length is not None:
            self._tokenizer.enable_truncation(length)
        return replace(settings, tokenizer=str(path), length=length, padding=padding)

    def __call__(self, texts: Sequence[str]) -> Arrays:
        """Inputs by name for one batch of texts."""
        if self._strings:
            (name,) = self._strings
            column = np.array([*texts, None], dtype=object)[:-1]
            wide = len(self._inputs[name].shape or ()) == 2
            return {name: column[:, None] if wide else column}
        rows = self._tokenizer.encode_batch(list(texts))
        longest = max((len(row.ids) for row in rows), default=0)
        width = self.settings.length if self.settings.padding == "length" else max(longest, 1)
        assert width is not None
        found = {}
        for role, name in self._roles.items():
            lines = [self._line(role, row, width) for row in rows]
            dtype = self._inputs[name].dtype
            found[name] = np.array(lines).astype(dtype.numpy() if dtype else np.int64)
        return found

    def _line(self, role: str, row: Any, width: int) -> list[int]:
        if role == POSITIONS:
            return list(range(width))
        values = {IDS: row.ids, MASK: row.attention_mask, TYPES: row.type_ids}[role]
        margin = [self._pad if role == IDS else 0] * (width - len(values))
        return [*margin, *values] if self._left else [*values, *margin]


class Texts:
    """Lines of one file, or the files of a folder. See `lwqc.runtime.sources.samples.Samples`."""

    def __init__(self, found: Found, inputs: Inputs, settings: Preprocess, beside: Path) -> None:
        """beside: folder of the model, where a tokenizer may be. Raises InputError."""
        check_keys(settings, KEYS, "texts")
        self.root, self.left_out = found.root, found.left_out
        self._lines = None if found.root.is_dir() else _lines(found.root)
        self._encode = Encode(inputs, settings, [beside, folder_of(found.root)])
        self.settings, self.alike = self._encode.settings, self._encode.alike
        self.files = found.files

    def __len__(self) -> int:
        return len(self.files if self._lines is None else self._lines)

    def batch(self, start: int, stop: int) -> Arrays:
        """Tokens of some texts."""
        if self._lines is not None:
            return self._encode(self._lines[start:stop])
        return self._encode([text_of(file) for file in self.files[start:stop]])

    def labels(self) -> Labels | None:
        """Of a table, or the folders that the files are in; lines have none."""
        if self._lines is not None:
            return None
        return file_labels(self.root, self.files, self.settings)


def folder_of(path: Path) -> Path:
    """A folder itself, or the one that a file is in."""
    return path if path.is_dir() else path.parent


def _lines(path: Path) -> list[str]:
    return [line for line in text_of(path).splitlines() if line.strip()]


def _roles(inputs: Inputs) -> dict[str, str]:
    """Which input takes what of a text: role -> input. Raises InputError."""
    for name, value in inputs.items():
        if value.dtype not in (None, *_NUMBERS) or len(value.shape or (0, 0)) != 2:
            raise InputError(
                f"input {name} {shape_text(value)} of type {value.dtype}: takes no tokens, which "
                "are whole numbers [batch, tokens]: write fill.INPUT=NUMBER for what is the same "
                "for all, or give module:callable"
            )
    if len(inputs) == 1:
        return {IDS: next(iter(inputs))}
    unknown = [name for name in inputs if name not in _NAMES]
    if unknown or IDS not in inputs:
        raise InputError(
            f"inputs {', '.join(inputs)}: of texts there are {', '.join(_NAMES)}: write "
            f"fill.{(unknown or ['INPUT'])[0]}=NUMBER, or give module:callable"
        )
    return {name: name for name in _NAMES if name in inputs}


def _tokenizer(settings: Preprocess, folders: Sequence[Path]) -> tuple[Any, Path]:
    places = [Path(settings.tokenizer)] if settings.tokenizer else [f / _USUAL for f in folders]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        shown = " or ".join(dict.fromkeys(map(str, places)))
        raise InputError(f"{shown}: no such file: write tokenizer=FILE, as `tokenizers` saves it")
    text = text_of(path)
    tokenizers = needed("tokenizers", "texts")
    try:
        return tokenizers.Tokenizer.from_str(text), path
    except Exception as error:  # the package raises nothing more special
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as a tokenizer: {reason}") from error
