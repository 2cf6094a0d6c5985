"""Lines on the terminal, in which names of models, paths and the user's code do nothing."""

from __future__ import annotations

import sys

from lwqc.model.printable import shown


def put(text: str, *, errors: bool = False) -> None:
    """Text of one or more lines on stdout, or on stderr."""
    for line in text.removesuffix("\n").split("\n"):
        print(shown(line), file=sys.stderr if errors else sys.stdout, flush=errors)


def say(message: str) -> None:
    """A line on stderr, in the name of the command."""
    print(f"lwqc: {shown(' '.join(message.split()))}", file=sys.stderr)
