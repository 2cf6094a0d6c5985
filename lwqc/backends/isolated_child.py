"""What the process behind `lwqc.backends.isolated` does: load models and run them, on request.

Imports nothing of lwqc, which would take longer than the work. Requests come as pickled tuples on
standard input, answers go to standard output: (True, result) or (False, reason).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort


class _Loaded:
    """The session of the last model; one at a time, so that memory holds one."""

    def __init__(self) -> None:
        self.session: ort.InferenceSession | None = None

    def load(
        self,
        model: str | bytes,
        optimize: bool,
        flags: Mapping[str, Any],
        entries: Mapping[str, str],
        providers: list[Any],
    ) -> list[tuple[str, str]]:
        """Names and types of the outputs. flags, entries: of the session options."""
        self.session = None
        _bound_memory(len(providers) == 1)  # devices reserve addresses that are no memory
        options = ort.SessionOptions()
        options.log_severity_level = 4
        for name, value in flags.items():
            setattr(options, name, value)
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
        self.session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
        return [(o.name, o.type) for o in self.session.get_outputs()]

    def run(self, feeds: Mapping[str, Any], keep: bool) -> list[Any] | None:
        """The outputs, if they are wanted."""
        assert self.session is not None
        known = [i.name for i in self.session.get_inputs()]
        values = self.session.run(None, {n: feeds[n] for n in known if n in feeds})
        return values if keep else None


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    _step_back()
    ort.set_default_logger_severity(4)
    loaded = _Loaded()
    while True:
        try:
            name, *arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = (True, getattr(loaded, name)(*arguments))
        except Exception as error:  # the runtime's own, of any kind
            answer = (False, " ".join(str(error).split()))
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


def _bound_memory(bounded: bool) -> None:
    """Address space as large as memory; what asks for more gets an error instead of it all."""
    if sys.platform == "win32":
        return
    import resource

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or memory < hard:
        resource.setrlimit(resource.RLIMIT_AS, (memory if bounded else hard, hard))


def _step_back() -> None:
    """Where memory gets short, this process is the one to go; and it leaves no core file."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # a system that does not know it or does not let us
        score.write_text("1000")


if __name__ == "__main__":
    main()
