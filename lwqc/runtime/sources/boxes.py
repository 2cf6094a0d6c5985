"""Boxes around what images show, as tables and as COCO's JSON have them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from lwqc.errors import InputError
from lwqc.model.numerals import real
from lwqc.runtime.sources.labels import text_of

COLUMNS = ("file", "label", "left", "top", "right", "bottom")
Corners = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class Box:
    """One thing in one image."""

    label: str
    corners: Corners


def read_boxes(
    path: Path, root: Path, files: Sequence[Path], classes: Sequence[str]
) -> list[list[Box]]:
    """Boxes of each file, in pixels of the upright image as it is stored.

    A table has the columns `COLUMNS`; `.json` is COCO's, where `[left, top, width, height]` are
    given, and crowds are left out. Classes of COCO are named where `classes` says the order of the
    channels, and numbered in the order of their ids otherwise. An image that the table does not
    name has nothing in it. Raises InputError, also where no image is named.
    """
    found = _coco(path, bool(classes)) if path.suffix.lower() == ".json" else _table(path)
    made = []
    for file in files:
        relative = file.relative_to(root).as_posix() if file != root else file.name
        made.append(found.get(relative, found.get(file.name)))
    if all(one is None for one in made):
        first = next(iter(found), "nothing")
        raise InputError(f"{path}: names none of the images; it begins with {first[:80]}")
    return [one or [] for one in made]


def _table(path: Path) -> dict[str, list[Box]]:
    rows = csv.DictReader(StringIO(text_of(path), newline=""))
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise InputError(f"{path}: has no column {missing[0]}; expected {','.join(COLUMNS)}")
    found: dict[str, list[Box]] = {}
    for row in rows:
        boxes = found.setdefault(str(row["file"]), [])
        try:
            left, top, right, bottom = (real(str(row[name])) for name in COLUMNS[2:])
        except ValueError as error:
            raise InputError(f"{path}: row {rows.line_num}: {error}") from error
        boxes.append(Box(str(row["label"]), _checked((left, top, right, bottom), path)))
    return found


def _coco(path: Path, named: bool) -> dict[str, list[Box]]:
    try:
        document: Any = json.loads(text_of(path))
    except ValueError as error:
        raise InputError(f"{path}: is no JSON: {error}") from error
    try:
        names = {one["id"]: str(one["name"]) for one in document["categories"]}
        order = {key: str(number) for number, key in enumerate(sorted(names))}
        images = {one["id"]: str(one["file_name"]) for one in document["images"]}
        found: dict[str, list[Box]] = {name: [] for name in images.values()}
        for one in document["annotations"]:
            if one.get("iscrowd"):
                continue
            left, top, width, height = map(float, one["bbox"])
            key = one["category_id"]
            corners = _checked((left, top, left + width, top + height), path)
            found[images[one["image_id"]]].append(Box((names if named else order)[key], corners))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is not as COCO's annotations: {error!r}") from error
    return found


def _checked(corners: Corners, path: Path) -> Corners:
    left, top, right, bottom = corners
    if not (right >= left and bottom >= top):
        raise InputError(f"{path}: box {left:g},{top:g},{right:g},{bottom:g} ends before it begins")
    return corners
