"""What the tests of whole-plan searches share: the demo model, its space and its trial model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import lwqc
from lwqc.decide.budgets.max_macs import BUDGET as MACS
from lwqc.decide.compress import open_version
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.overhead import measure_overhead
from lwqc.decide.search.search_model import SearchModel, search_model
from lwqc.decide.search.trial_model import TrialModel

DIGITS = Path(lwqc.__file__).parent / "cli/demo/digits.onnx"
DATA = "models.digits:calibration"


def opened(**options):
    return open_version(DIGITS, **{"data": DATA, **options})


@lru_cache(maxsize=1)
def found() -> SearchModel:
    """Formats, widths and branches of the demo model, to nearest."""
    made = search_model(opened(), {"format", "width", "branch"})
    measure_overhead(made)
    MACS.prepare(made, SearchLog())
    return made


@lru_cache(maxsize=1)
def trial() -> TrialModel:
    return TrialModel(found().spec)


def changed(**levels: int):
    """The original with some items at other levels; names as `kind_number`, counted per kind."""
    space = found().space
    candidate = list(space.top)
    for name, level in levels.items():
        kind, number = name.split("_")
        item = space.of_kind(kind)[int(number)]
        candidate[item] = level if level >= 0 else space.items[item].top + level
    return tuple(candidate)
