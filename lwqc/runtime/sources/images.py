"""Images as inputs of a model; needs the extra `lwqc[data]`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.array_files import check_regular
from lwqc.model.limits import beyond, limits
from lwqc.model.needed import needed
from lwqc.plans.preprocess import Preprocess
from lwqc.runtime.sources.boxes import Corners, read_boxes
from lwqc.runtime.sources.folders import Found
from lwqc.runtime.sources.labels import Labels, of_folders, of_table, read_classes
from lwqc.runtime.sources.samples import (
    Arrays,
    Inputs,
    check_keys,
    only_input,
    shape_text,
)

KEYS = ("size", "fit", "pad", "resize", "color", "layout", "range", "mean", "std", "boxes")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
_GREY = 114.0  # of letterboxes, as YOLO has it
_BYTES = 255.0
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # tag of EXIF, and what of it turns by 90 degrees
_CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
_ASK_RANGE = (
    "write what pixels become, range=0..1, range=-1..1 or range=0..255, and mean=, std= if there "
    "are any"
)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


class Images:
    """Files, each decoded when it is asked for. See `lwqc.runtime.sources.samples.Samples`."""

    alike = True

    def __init__(self, found: Found, inputs: Inputs, settings: Preprocess) -> None:
        """Raises InputError for what does not fit the model, or is not said."""
        check_keys(settings, KEYS, "images")
        self.root, self.files, self.left_out = found.root, found.files, found.left_out
        self._input, value = only_input(inputs, settings, "images")
        self.settings = resolved(value, settings)
        self._to_array = Prepare(value, self.settings)

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, start: int, stop: int) -> Arrays:
        """Decode and prepare images."""
        rows = []
        for file in self.files[start:stop]:
            with open_image(file) as image:
                rows.append(self._to_array(image, str(file)))
        return {self._input: np.stack(rows)}

    def labels(self) -> Labels | None:
        """Of a table, or else the folders that the files are in; and boxes, where there are any."""
        if self.settings.boxes:
            return self._boxes(Path(self.settings.boxes))
        return file_labels(self.root, self.files, self.settings)

    def _boxes(self, path: Path) -> Labels:
        classes = read_classes(self.settings.classes)
        found = read_boxes(path, self.root, self.files, classes)
        names = tuple(box.label for image in found for box in image)
        numbers = iter(Labels(names, classes).numbers)
        boxes = []
        for file, image in zip(self.files, found, strict=True):
            with open_image(file) as opened:
                placed = placing(_upright_size(opened), self.settings)
            rows = [[next(numbers), *placed(box.corners)] for box in image]
            boxes.append(np.array(rows, np.float64).reshape(-1, 5))
        return Labels((), classes, boxes=tuple(boxes))


def file_labels(root: Path, files: Sequence[Path], settings: Preprocess) -> Labels | None:
    """Labels of files: of a table, or else the folders that they are in; None without either."""
    if settings.labels:
        names: tuple[str, ...] | None = of_table(Path(settings.labels), root, files)
    else:
        names = of_folders(root, files) if root.is_dir() else None
    if names is None:
        return None
    return Labels(names, read_classes(settings.classes), of_folders=not settings.labels)


class Prepare:
    """An image of Pillow's becomes an array without axis 0, as the resolved settings say."""

    def __init__(self, value: ir.Value, settings: Preprocess) -> None:
        self._settings = settings
        self._dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        self._flat = len(value.shape or ()) == 3

    def __call__(self, image: Any, where: str) -> NDArray[Any]:
        """Raises InputError for what cannot be decoded."""
        how = self._settings
        pixels: NDArray[Any] = _pixels(image, how, where)
        if self._dtype.kind != "u":
            assert how.range is not None
            low, high = how.range
            pixels = low + pixels.astype(np.float32) * np.float32((high - low) / _BYTES)
            if how.mean:
                pixels = pixels - np.array(how.mean, np.float32)
            if how.std:
                pixels = pixels / np.array(how.std, np.float32)
        if self._flat:
            pixels = pixels[..., 0]
        elif how.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels.astype(self._dtype))


def resolved(value: ir.Value, settings: Preprocess) -> Preprocess:
    """The settings with what the model's input says. Raises InputError for what nothing says."""
    where = f"input {value.name} {shape_text(value)}"
    layout, channels, height, width = _axes(value, settings, where)
    color = settings.color or ("gray" if channels == 1 else "rgb")
    if channels is not None and channels != _CHANNELS[color]:
        raise InputError(f"{where}: takes {channels} channels; color={color} has not as many")
    size = _size(value, settings, height, width, where)
    fit = settings.fit or "stretch"
    boxed = fit.startswith("letterbox")
    if settings.pad is not None and not boxed:
        raise InputError("--preprocess pad: is the margin of letterbox: write that too")
    for key in ("mean", "std"):
        if len(getattr(settings, key)) not in (0, 1, _CHANNELS[color]):
            raise InputError(
                f"--preprocess {key}: has {len(getattr(settings, key))} numbers; expected 1 or "
                f"{_CHANNELS[color]}, the channels of {color}"
            )
    return replace(
        settings,
        size=size,
        fit=fit,
        pad=(_GREY if settings.pad is None else settings.pad) if boxed else None,
        resize=settings.resize or "bilinear",
        color=color,
        layout=layout,
        range=_range(value, settings, where),
    )


def _axes(
    value: ir.Value, settings: Preprocess, where: str
) -> tuple[str, int | None, int | None, int | None]:
    """Layout, channels, height and width, where they are known."""
    dims = [d if isinstance(d, int) else None for d in value.shape or ()]
    if len(dims) == 3:
        return "", 1, dims[1], dims[2]
    if len(dims) != 4:
        raise InputError(f"{where}: takes no images, which have 4 axes, or 3 in gray")
    layout = settings.layout
    if not layout:
        fits = [n for n, axis in (("nchw", 1), ("nhwc", 3)) if dims[axis] in (1, 3)]
        if len(fits) != 1:
            raise InputError(f"{where}: write layout=nchw or layout=nhwc, where its channels are")
        (layout,) = fits
    channels, height, width = dims[1:] if layout == "nchw" else (dims[3], dims[1], dims[2])
    if channels not in (None, 1, 3):
        raise InputError(f"{where}: takes {channels} channels in layout={layout}; images have 1, 3")
    return layout, channels, height, width


def _size(
    value: ir.Value, settings: Preprocess, height: int | None, width: int | None, where: str
) -> tuple[int, int]:
    if settings.size is None:
        if height is None or width is None:
            more = f"; {_ASK_RANGE}" if _range_unsaid(value, settings) else ""
            raise InputError(f"{where}: takes any size: write size=WIDTHxHEIGHT{more}")
        return width, height
    w, h = settings.size
    if (height or h, width or w) != (h, w):
        raise InputError(
            f"{where}: size={w}x{h} does not fit; it takes size={width or w}x{height or h}"
        )
    return settings.size


def _range(value: ir.Value, settings: Preprocess, where: str) -> tuple[float, float] | None:
    """What bytes become. Mean and std tell whether they are meant for bytes or for 0 to 1."""
    if value.dtype == ir.DataType.UINT8:
        if settings.mean or settings.std or settings.range not in (None, (0.0, _BYTES)):
            raise InputError(f"{where}: takes bytes as they are: leave out range, mean and std")
        return (0.0, _BYTES)
    if value.dtype is not None and value.dtype not in _FLOATS:
        raise InputError(f"{where}: is of type {value.dtype}; images are floats or uint8")
    if settings.range is not None:
        return settings.range
    if any(number > 1 for number in (*settings.mean, *settings.std)):
        return (0.0, _BYTES)
    if any(settings.mean):
        return (0.0, 1.0)
    raise InputError(f"{where}: {_ASK_RANGE}")


def _range_unsaid(value: ir.Value, settings: Preprocess) -> bool:
    """Whether nothing tells what bytes become."""
    said = settings.range is not None or any(settings.mean) or any(n > 1 for n in settings.std)
    return value.dtype in _FLOATS and not said


def open_image(path: str | os.PathLike[str]) -> Any:
    """An image of Pillow's, not decoded yet. Raises InputError."""
    pillow = needed("PIL.Image", "images")
    file = Path(path)
    check_regular(file, "an image")
    with _reading(str(file)):
        return pillow.open(file, formats=_FORMATS)


def _pixels(image: Any, how: Preprocess, where: str) -> NDArray[np.uint8]:
    """[height, width, channels] in the size of the settings, upright as a camera says."""
    operations = needed("PIL.ImageOps", "images")
    unpacked = image.width * image.height * 4
    if unpacked > limits().data:
        raise beyond(f"{where}: decoding it", "data", unpacked)
    with _reading(where):
        upright = operations.exif_transpose(image)
        plain = upright.convert("L" if how.color == "gray" else "RGB")
    pixels = np.asarray(_fitted(plain, how), np.uint8)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return pixels[..., ::-1] if how.color == "bgr" else pixels


def _fitted(image: Any, how: Preprocess) -> Any:
    pillow = needed("PIL.Image", "images")
    filters = pillow.Resampling
    names = {"bilinear": filters.BILINEAR, "bicubic": filters.BICUBIC}
    kind = {**names, "nearest": filters.NEAREST, "area": filters.BOX}[how.resize]
    assert how.size is not None
    width, height = how.size
    inner, (left, top) = _inner(image.size, how)
    scaled = image.resize(inner, kind)
    if how.fit == "stretch":
        return scaled
    if how.fit == "crop":
        return scaled.crop((-left, -top, width - left, height - top))
    shade = int(how.pad or 0)
    box = pillow.new(image.mode, how.size, shade if image.mode == "L" else (shade,) * 3)
    box.paste(scaled, (left, top))
    return box


def _inner(size: tuple[int, int], how: Preprocess) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height of the scaled image, and where its corner goes; below 0 where it is cut."""
    assert how.size is not None
    width, height = how.size
    if how.fit == "stretch":
        return how.size, (0, 0)
    ratios = width / size[0], height / size[1]
    ratio = max(ratios) if how.fit == "crop" else min(ratios)
    inner = max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))
    if how.fit != "crop":
        inner = min(width, inner[0]), min(height, inner[1])
    if how.fit == "letterbox-topleft":
        return inner, (0, 0)
    return inner, ((width - inner[0]) // 2, (height - inner[1]) // 2)


def placing(size: tuple[int, int], how: Preprocess) -> Callable[[Corners], Corners]:
    """Where a box of an image of this width and height is in the input, in pixels of it."""
    assert how.size is not None
    inner, (x, y) = _inner(size, how)
    wide, high = inner[0] / size[0], inner[1] / size[1]
    most = how.size

    def placed(corners: Corners) -> Corners:
        left, top, right, bottom = corners
        moved = (left * wide + x, top * high + y, right * wide + x, bottom * high + y)
        a, b, c, d = (min(max(v, 0.0), most[i % 2]) for i, v in enumerate(moved))
        return a, b, c, d

    return placed


def _upright_size(image: Any) -> tuple[int, int]:
    """Width and height as the camera says that the image is held."""
    turned = image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
    return (image.height, image.width) if turned else (image.width, image.height)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Run a decoder. Of damaged files each has errors of its own, and warns of what it mends."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{where}: cannot be read as an image: {reason}") from error
