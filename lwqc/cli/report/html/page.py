"""What a page says, as data: `render` alone knows how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Tone = Literal["", "good", "bad", "note"]
Look = Literal["tried", "front", "start", "best"]


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    value: what rows are sorted by; None for the text. bar: length of a bar behind the text, as a
    share of the longest; None for no bar.
    """

    text: str
    value: float | None = None
    bar: float | None = None
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """Rows that a reader can sort and search. numeric: numbers of columns that hold numbers."""

    kind: ClassVar[str] = "table"
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    caption: str = ""
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Lines:
    """Sentences, one below the other. tone: of all of them."""

    kind: ClassVar[str] = "lines"
    lines: tuple[str, ...]
    title: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Source:
    """Text as it is, such as a command or a plan. folded: until a reader opens it."""

    kind: ClassVar[str] = "source"
    text: str
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Mark:
    """Something drawn. x, y: in the numbers of the axes. look: class of its style."""

    x: float
    y: float
    text: str
    look: Look


@dataclass(frozen=True)
class Scatter:
    """Points, the line through the best of them, and a limit of x; None for none."""

    kind: ClassVar[str] = "scatter"
    x_name: str
    y_name: str
    marks: tuple[Mark, ...]
    limit: float | None = None
    title: str = ""
    caption: str = ""
    x_is_bytes: bool = False


@dataclass(frozen=True)
class Layer:
    """A stored weight in the order of the graph.

    bits: stored per weight that is left. kept: share of its weights that are left, 0 where it is
    gone. text: what is shown beside it.
    """

    name: str
    bits: float
    kept: float
    text: str


@dataclass(frozen=True)
class Depth:
    """What became of weights, along the depth of the model."""

    kind: ClassVar[str] = "depth"
    layers: tuple[Layer, ...]
    title: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Box:
    """A node that is drawn. title: shown where a reader points at it."""

    x: int
    y: int
    width: int
    height: int
    text: str
    title: str
    tone: Tone = ""


@dataclass(frozen=True)
class Line:
    """From one place of a drawing to another, downwards."""

    x: int
    y: int
    to_x: int
    to_y: int


@dataclass(frozen=True)
class Drawing:
    """Boxes and what joins them, in units of a point where nothing is zoomed."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Fold:
    """A part of a model that can be unfolded. tone: bad where it is gone.

    drawing: of its nodes; None where there are too many.
    """

    name: str
    text: str
    lines: tuple[str, ...]
    tone: Tone = ""
    drawing: Drawing | None = None


@dataclass(frozen=True)
class Outline:
    """Models as rows of their parts, side by side. columns: (title, parts)."""

    kind: ClassVar[str] = "outline"
    columns: tuple[tuple[str, tuple[Fold, ...]], ...]
    title: str = ""
    caption: str = ""


Block = Table | Lines | Source | Scatter | Depth | Outline


@dataclass(frozen=True)
class Section:
    """A chapter of a page; one without blocks is left out."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """All that a report says. facts: short lines below the title."""

    title: str
    facts: tuple[str, ...]
    sections: tuple[Section, ...]


def section(title: str, *blocks: Block | None) -> Section:
    """A chapter of those blocks that there are."""
    return Section(title, tuple(block for block in blocks if block is not None))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell | str]],
    *,
    title: str = "",
    caption: str = "",
    numeric: Sequence[int] = (),
) -> Table | None:
    """A table of cells, or of texts; None without rows."""
    if not rows:
        return None
    made = tuple(tuple(Cell(c) if isinstance(c, str) else c for c in row) for row in rows)
    return Table(tuple(columns), made, title, caption, frozenset(numeric))
