"""Results that say in a few words what they are, in a console and in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from lwqc.model.printable import shown


class Told:
    """Something with a short `repr`, and a small table where a notebook shows it."""

    def told(self) -> Mapping[str, str]:
        """What it says of itself: name of a fact -> the fact. Empty ones are left out."""
        raise NotImplementedError

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={text}" for name, text in self._facts().items())
        return f"<{type(self).__name__}: {facts}>"

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>"
            for name, text in self._facts().items()
        )
        return f"<table>{''.join(rows)}</table>"

    def _facts(self) -> dict[str, str]:
        return {name: shown(text) for name, text in self.told().items() if text}
