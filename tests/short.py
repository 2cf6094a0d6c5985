"""Short searches, for tests of what comes of them in any case."""

from lwqc.decide.allocators.evolutionary import Settings
from lwqc.decide.search import control as search_control
from lwqc.decide.search import joint

SETTINGS = Settings(generations=1, offspring=2, survivors=(2,))


def short(monkeypatch) -> None:
    """Search for one generation."""
    efforts = dict.fromkeys(search_control.EFFORTS, SETTINGS)
    for module in (joint, search_control):
        monkeypatch.setattr(module, "EFFORTS", efforts)
