"""Makes images of characters: masters from TrueType fonts, distorted with seeded numpy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Chosen so that every font below has them and no two look alike once scaled and sheared.
CHARACTERS = (
    "!#$%&()*+/012345679:<=>?@ABCDEHJKLMNPQRTUVWXZ[\\_abdefkmnoqrs"
    "y¢¤§©«®±¶»¼ÀÆÇÈÑÝÞàæďķŉŒŞŵƈƕƯƺǼɝɤɰʍʐʖʞʣʤʦΉΎΞΦΨβζώϟϠЂЉЋЛЫцчѣ“"
    "‟›⁇™⅘↖↩↬↰↱↲↶↷↸↺⇅⇑⇘⇙∉∌∓√∝∟∠∸∹∺≐≡≥⊂⊃⊆⊇⊔⊕⊞⊠⊢⌂⌐⌙├┤╖╙╜╠╤╧╨╪╬△▽◁◊♭"
)
TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "STIXGeneral",
)
TEST_FONTS = ("DejaVuSerif-Italic", "DejaVuSansMono-BoldOblique", "STIXGeneralBol")
SIZE, LEVELS = 32, 16
_MASTER, _POINTS = 72, 50
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Images:
    """pixels: uint8 [n, 32, 32] in 0..15; labels: uint8 [n], positions in CHARACTERS."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def make(count: int, seed: int, *, fonts: tuple[str, ...]) -> Images:
    """Draw `count` distorted characters; the same arguments give the same bytes.

    Classes take turns, so counts per class differ by one at most.
    """
    rng = np.random.default_rng(seed)
    turns = -(-count // len(CHARACTERS))
    labels = np.concatenate([rng.permutation(len(CHARACTERS)) for _ in range(turns)])[:count]
    parts = [
        _draw(labels[start : start + 256], rng, masters(fonts)) for start in range(0, count, 256)
    ]
    return Images(np.concatenate(parts), labels.astype(np.uint8))


@lru_cache(maxsize=4)
def masters(fonts: tuple[str, ...], characters: str = "") -> Floats:
    """Clean glyphs, ink 0..1: [font, blur, character, 72, 72], bounding boxes centred."""
    sharp = np.stack([[_glyph(font, c) for c in characters or CHARACTERS] for font in fonts])
    once = _blur(_blur(sharp))
    twice = _blur(_blur(_blur(once)))
    return np.stack([once, twice, _blur(_blur(_blur(_blur(twice))))], axis=1)


def _glyph(font: str, character: str) -> Floats:
    """One character in the middle of a 72x72 canvas."""
    from pathlib import Path

    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    face = ImageFont.truetype(str(path), _POINTS, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = face.getbbox(character)
    canvas = Image.new("L", (_MASTER, _MASTER))
    corner = ((_MASTER - left - right) / 2, (_MASTER - top - bottom) / 2)
    ImageDraw.Draw(canvas).text(corner, character, fill=255, font=face)
    return np.asarray(canvas, np.float32) / np.float32(255)


def _blur(x: Floats) -> Floats:
    """Binomial 1-2-1 filter along the last two axes."""
    for axis in (-2, -1):
        x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / np.float32(4)
    return x


def _draw(labels: NDArray[Any], rng: np.random.Generator, glyphs: Floats) -> NDArray[np.uint8]:
    """One batch: glyph over clutter, an occluding bar, contrast, shading, noise, 16 levels."""
    n = len(labels)

    def uniform(low: float, high: float) -> Floats:
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    ink = _place(glyphs, labels, rng, shift=3.0, scale=(1.45, 2.1))
    others = rng.integers(0, glyphs.shape[2], n)
    far = rng.choice([-1.0, 1.0], (2, n)) * rng.uniform(9, 16, (2, n))
    clutter = _place(glyphs, others, rng, shift=2.0, scale=(1.4, 2.6), offset=far)
    picture = np.maximum(ink, clutter * uniform(0.0, 0.6))
    picture = _occlude(picture, rng)
    picture = picture * uniform(0.6, 1.0) + _shading(rng, n)
    picture = np.where(uniform(0, 1) < 0.5, 1 - picture, picture)
    picture += uniform(0.02, 0.10) * rng.standard_normal(picture.shape, np.float32)
    grey: Floats = np.clip(np.rint(picture * (LEVELS - 1)), 0, LEVELS - 1)
    return grey.astype(np.uint8)


def _place(
    glyphs: Floats,
    labels: NDArray[Any],
    rng: np.random.Generator,
    *,
    shift: float,
    scale: tuple[float, float],
    offset: NDArray[Any] | float = 0.0,
) -> Floats:
    """Sample masters through a random affine map: [n, 32, 32].

    scale: master pixels per image pixel; offset: further shift in image pixels, [2, n].
    """
    n = len(labels)
    angle, shear = rng.uniform(-0.3, 0.3, n), rng.uniform(-0.25, 0.25, n)
    high, wide = rng.uniform(*scale, (2, n)) * rng.uniform(0.9, 1.1, (2, n))
    moved = rng.uniform(-shift, shift, (2, n)) + offset
    grid = np.arange(SIZE) - (SIZE - 1) / 2
    y = grid[None, :, None] - moved[0][:, None, None]
    x = grid[None, None, :] - moved[1][:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    row = (cos * y - sin * x) * high[:, None, None]
    column = (sin * y + cos * x) * wide[:, None, None] + shear[:, None, None] * row
    which = (rng.integers(0, glyphs.shape[0], n), rng.integers(0, glyphs.shape[1], n), labels)
    return _bilinear(glyphs, which, row + (_MASTER - 1) / 2, column + (_MASTER - 1) / 2)


def _bilinear(
    glyphs: Floats, which: tuple[NDArray[Any], ...], row: NDArray[Any], column: NDArray[Any]
) -> Floats:
    """Interpolate masters at real positions [n, 32, 32]; outside is empty."""
    row, column = np.clip(row, 0, _MASTER - 1.001), np.clip(column, 0, _MASTER - 1.001)
    top, left = row.astype(np.int64), column.astype(np.int64)
    down, right = (row - top).astype(np.float32), (column - left).astype(np.float32)
    font, blur, label = which
    start = ((font * glyphs.shape[1] + blur) * glyphs.shape[2] + label)[:, None, None]
    at = (start * _MASTER + top) * _MASTER + left
    flat = glyphs.reshape(-1)
    upper = flat[at] * (1 - right) + flat[at + 1] * right
    lower = flat[at + _MASTER] * (1 - right) + flat[at + _MASTER + 1] * right
    return upper * (1 - down) + lower * down  # type: ignore[no-any-return]


def _occlude(picture: Floats, rng: np.random.Generator) -> Floats:
    """Cover a bar, 0 to 4 pixels wide, across the whole image, with one grey."""
    n = len(picture)
    angle, distance = rng.uniform(0, np.pi, n), rng.uniform(-9, 9, n)
    width = rng.uniform(-1.5, 2.0, n)[:, None, None]  # half of it; below zero: no bar
    grid = np.arange(SIZE) - (SIZE - 1) / 2
    along = np.cos(angle)[:, None, None] * grid[:, None] + np.sin(angle)[:, None, None] * grid
    covered = np.abs(along - distance[:, None, None]) < width
    grey = rng.uniform(0, 1, (n, 1, 1)).astype(np.float32)
    return np.where(covered, grey, picture)


def _shading(rng: np.random.Generator, n: int) -> Floats:
    """A linear slope of brightness per image: [n, 32, 32]."""
    grid = np.linspace(-1, 1, SIZE)
    slope = rng.uniform(-0.15, 0.15, (2, n, 1, 1))
    level = rng.uniform(0.0, 0.25, (n, 1, 1))
    plane: NDArray[np.float64] = level + slope[0] * grid[:, None] + slope[1] * grid
    return plane.astype(np.float32)
