"""Short timings and searches, for tests of what comes of them in any case."""

from lwqc.compile import compressed, timing
from lwqc.decide import fastest
from lwqc.decide.allocators.evolutionary import Settings
from lwqc.decide.search import control as search_control
from lwqc.decide.search import joint
from lwqc.runtime import measure

SECONDS = 0.01
SETTINGS = Settings(generations=1, offspring=2, survivors=(2,))


def short(monkeypatch) -> None:
    """Time everything only as often as it takes, and search for one generation."""
    efforts = dict.fromkeys(search_control.EFFORTS, SETTINGS)
    for module in (joint, search_control):
        monkeypatch.setattr(module, "EFFORTS", efforts)
    for module in (measure, fastest):
        monkeypatch.setattr(module, "_SECONDS", SECONDS)
    monkeypatch.setattr(fastest, "_GLANCE", SECONDS)
    monkeypatch.setattr(timing, "_SECONDS", SECONDS)
    real = measure.latencies
    monkeypatch.setattr(compressed, "latencies", lambda s, f, seconds=0.0: real(s, f, SECONDS))
