"""Random graphs for tests, see `lwqc.testing.random_graphs`."""

from lwqc.testing.random_graphs.models import KINDS, feeds, kinds_of, models, run

__all__ = ["KINDS", "feeds", "kinds_of", "models", "run"]
