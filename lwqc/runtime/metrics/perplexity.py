"""How surprised a language model is by the next token."""

from __future__ import annotations

import numpy as np

from lwqc.errors import InputError
from lwqc.runtime.metrics.task import Array, Run, Task
from lwqc.runtime.sources.texts import IDS, MASK


class Perplexity:
    """exp of the mean negative log-likelihood of each token after the first, masked ones aside."""

    name = "perplexity"
    higher_is_better = False
    against = "the next tokens"

    def __init__(self, task: Task) -> None:
        """Raises InputError where the model takes no tokens or predicts none."""
        self._task = task
        feeds = task.data.first()
        self._ids = _ids(feeds)
        shape = feeds[self._ids].shape

        def fits(answer: Array) -> bool:
            return answer.ndim == 3 and answer.dtype.kind == "f" and answer.shape[:2] == shape

        self._output = task.output(fits, f"logits {[*shape, 'tokens']} for {self._ids}")

    def __call__(self, run: Run) -> float:
        """The perplexity on all data."""
        from scipy.special import log_softmax

        total, count = 0.0, 0.0
        for feeds, logits in self._task.answers(run, self._output):
            ids = feeds[self._ids][:, 1:]
            known = logits.shape[-1]
            if ids.size and not 0 <= ids.min() <= ids.max() < known:
                wrong = ids.max() if ids.max() >= known else ids.min()
                raise InputError(
                    f"perplexity: token {wrong}: output {self._output} has {known} tokens, from 0"
                )
            scores = log_softmax(logits[:, :-1].astype(np.float64), axis=-1)
            found = np.take_along_axis(scores, ids[..., None].astype(np.int64), -1)[..., 0]
            mask = feeds[MASK][:, 1:] != 0 if MASK in feeds else np.ones(ids.shape, bool)
            total, count = total - float(found[mask].sum()), count + float(mask.sum())
        if not count:
            raise InputError("perplexity: no text has a second token")
        return float(np.exp(total / count))


def _ids(feeds: dict[str, Array]) -> str:
    whole = [n for n, a in feeds.items() if a.ndim == 2 and a.dtype.kind in "iu"]
    if IDS in whole or len(whole) == 1:
        return IDS if IDS in whole else whole[0]
    raise InputError(f"perplexity: which input has the tokens? expected one named {IDS}")
