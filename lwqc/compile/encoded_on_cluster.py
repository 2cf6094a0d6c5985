"""Weights of one part of a model, encoded by the workers of a cluster."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from lwqc.compile.encoding_task import (
    Answer,
    Damaged,
    LaidWork,
    answer,
    check_maker,
    taken,
    task_key,
)
from lwqc.errors import InputError, LwqcError
from lwqc.model.numerals import size_text
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.to_encode import Held, ToEncode
from lwqc.plans.plan import SiteEntry
from lwqc.runtime.cluster import LOSSES, RESTARTS, Cluster, first_ended, reason_of
from lwqc.runtime.shared_folder import SharedFolder, UnseenError

_AHEAD = 2  # tasks for each thread of a worker: one is on its way while the other is done
MOST_SENT = 4 << 30  # bytes of weights and Gram matrices that a scheduler holds


@dataclass(frozen=True)
class _Sent:
    site: str
    key: str
    shape: tuple[int, int]
    nbytes: int
    laid: LaidWork | None


class ClusterEncoding:
    """Sends weights out and takes their codes in.

    Arrays lie in a folder for workers to map, which spares two trips through sockets. As soon as a
    worker says that it does not see the folder, or nothing can be written there, arrays are sent.

    Where workers die, Dask gives what they had to others; what is lost or damaged on the way is
    sent again. Where no answer comes for too long, weights are encoded here, which gives the same
    codes: `here` counts them.
    """

    def __init__(
        self,
        cluster: Cluster,
        address: str,
        weights: EncodedWeights,
        most_bytes: int = MOST_SENT,
        folder: Path | None = None,
    ) -> None:
        """address: for messages. most_bytes: that are on their way at a time, beside one task.

        folder: where arrays lie meanwhile, and nothing else does; None: they are sent.
        """
        self._cluster, self._address = cluster, address
        self._weights, self._most = weights, most_bytes
        # Workers' deaths are counted apart; what a worker raises it would raise again.
        self._executor: Executor = cluster.client.get_executor(pure=False, retries=0)
        self._lost: Counter[str] = Counter()
        self._place = folder
        self._folder: SharedFolder | None = None
        self.here = 0

    def encode(self, entries: Mapping[str, SiteEntry]) -> None:
        """Encode what is not yet; codes go to the store of the weights as they come.

        Raises InputError for a weight that cannot be encoded, and for workers that would give other
        codes; LwqcError where the cluster fails again and again.
        """
        self._folder = self._made()
        try:
            self._encode(entries)
        finally:
            if self._folder is not None:
                self._folder.remove()

    def _made(self) -> SharedFolder | None:
        if self._place is None:
            return None
        try:
            return SharedFolder(self._place)
        except OSError:
            return None

    def _encode(self, entries: Mapping[str, SiteEntry]) -> None:
        lacking = [s for s, entry in entries.items() if self._weights.lacks(s, entry)]
        # What takes longest first: no worker is left with it alone in the end.
        waiting = deque(sorted(lacking, key=self._weights.steps_of, reverse=True))
        sent: dict[Future[Answer], _Sent] = {}
        last = time.monotonic()
        while waiting or sent:
            most = self._most_tasks() if waiting else 0
            while waiting and self._fits(sent, most):
                site = waiting.popleft()
                self._send(site, entries[site], sent)
                if len(sent) == 1:
                    last = time.monotonic()  # statistics may have been taken for the first
            ended = first_ended(sent, last)
            if not ended:
                site = sent.pop(next(iter(sent))).site
                self._weights.ensure(site, entries[site])
                self.here += 1
                continue
            last = time.monotonic()
            for future in ended:
                one = sent.pop(future)
                self._release(one.laid)
                held = self._held(future, one, entries[one.site])
                if held is None:
                    waiting.appendleft(one.site)
                else:
                    self._weights.keep(one.site, entries[one.site], held)

    def _most_tasks(self) -> int:
        try:
            return _AHEAD * max(self._cluster.threads, 1)
        except OSError as error:
            raise LwqcError(
                f"--cluster {self._address}: the scheduler is gone: {reason_of(error)}"
            ) from error

    def _fits(self, sent: Mapping[Future[Answer], _Sent], most: int) -> bool:
        on_way = sum(one.nbytes for one in sent.values())
        return not sent or (len(sent) < most and on_way < self._most)

    def _send(self, site: str, entry: SiteEntry, sent: dict[Future[Answer], _Sent]) -> None:
        work = self._weights.to_encode(site, entry)
        n, k = work.weight.shape
        laid = self._laid(work)
        one = _Sent(site, task_key(work, laid), (n, k), work.nbytes, laid)
        sent[self._executor.submit(answer, laid or work)] = one

    def _laid(self, work: ToEncode) -> LaidWork | None:
        folder = self._folder
        if folder is None or self._place is None:
            return None
        try:
            gram = None if work.gram is None else folder.lay(work.gram)
            return LaidWork(folder.lay(work.weight), work.entry, gram)
        except OSError:  # as on a full disk
            self._place = None
            return None

    def _release(self, laid: LaidWork | None) -> None:
        if laid is not None and self._folder is not None:
            for array in filter(None, (laid.weight, laid.gram)):
                self._folder.release(array)

    def _held(self, future: Future[Answer], one: _Sent, entry: SiteEntry) -> Held | None:
        """The codes, None where they are lost and may be asked for again."""
        try:
            found = self._answer(future, one.site)
            check_maker(found, self._address)
            return taken(found, one.key, one.shape, entry)
        except self._cluster.died as error:
            raise LwqcError(
                f"--cluster {self._address}: workers die of {one.site} again and again; is there "
                f"enough memory? It is sent {size_text(one.nbytes)}"
            ) from error
        except ImportError as error:
            raise InputError(
                f"--cluster {self._address}: a worker has not what lwqc needs: {reason_of(error)}"
            ) from error
        except UnseenError:
            self._place = None  # from now on arrays are sent
            return None
        except (*LOSSES, Damaged) as error:
            self._lost[one.site] += 1
            if self._lost[one.site] > RESTARTS:
                raise LwqcError(
                    f"--cluster {self._address}: {one.site} is lost again and again: "
                    f"{reason_of(error)}"
                ) from error
            return None

    @staticmethod
    def _answer(future: Future[Answer], site: str) -> Answer:
        try:
            return future.result(timeout=0)
        except InputError as error:
            raise InputError(f"{site}: {error}") from error
