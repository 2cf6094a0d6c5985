"""Weights that other machines encode: the same bytes, whatever becomes of the machines."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextvars import Context
from dataclasses import replace

import numpy as np
import pytest

import lwqc
from lwqc.compile import encoded_on_cluster, encoding_task
from lwqc.compile.encoding_task import Answer, Damaged, encode_alone, maker, taken, task_key
from lwqc.compile.forecast import rates
from lwqc.compile.kept_parts import KeptParts
from lwqc.decide.compress import open_version
from lwqc.errors import InputError, LwqcError
from lwqc.model import io
from lwqc.passes.to_encode import ToEncode
from lwqc.plans.plan import SiteEntry
from lwqc.runtime import cluster as connection
from lwqc.runtime import shared_folder
from lwqc.runtime.one_thread import one_thread
from tests.build import normal, residual_blocks

distributed = pytest.importorskip("distributed", reason="needs lwqc[cluster]")
threadpool_info = pytest.importorskip("threadpoolctl").threadpool_info
WIDTH, HIDDEN, BLOCKS = 64, 192, 4
GPTQ = {"bits": 4, "method": "gptq"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A stack of residual blocks, its data, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("cluster")
    io.save(residual_blocks(WIDTH, HIDDEN, BLOCKS), folder / "m.onnx")
    np.savez(folder / "d.npz", x0=normal(64, WIDTH, seed=99))
    with one_thread():
        made(folder, folder / "alone.onnx")
    return folder


def made(folder, out, **options):
    """The bytes of the quantized model, and what its report notes.

    In a context of its own: what checks every model between passes in tests would encode its
    weights here.
    """

    def quantize():
        data = str(folder / "d.npz")
        done = lwqc.quantize(folder / "m.onnx", data=data, **GPTQ, **options)
        return done.save(out, verify=False)

    report = Context().run(quantize)
    return out.read_bytes(), report.notes


@pytest.fixture(scope="module")
def processes():
    """Two real workers."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=True
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def threads():
    """Two workers within this process, where tests can reach what they call."""
    with in_threads(2) as cluster:
        yield cluster


def in_threads(count):
    return distributed.LocalCluster(
        n_workers=count, threads_per_worker=1, dashboard_address=":0", processes=False
    )


@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_workers_gives_the_same_bytes(small, tmp_path, count, monkeypatch):
    real, calls = encode_alone, []
    monkeypatch.setattr(encoding_task, "encode_alone", lambda w: calls.append(w) or real(w))
    with in_threads(count) as cluster:
        found, notes = made(small, tmp_path / "q.onnx", cluster=cluster.scheduler_address)
    assert len(calls) == 2 * BLOCKS
    assert found == (small / "alone.onnx").read_bytes()
    assert not [note for note in notes if "--cluster" in note]
    assert not (tmp_path / "q.onnx.parts").exists()


def test_a_worker_that_is_killed_loses_nothing(small, tmp_path, processes, monkeypatch):
    """In the middle: when the first codes come in, others are out."""
    victims, put = [processes.workers[0].process.process.pid], KeptParts.put

    def kill_and_put(self, key, held):
        if victims:
            os.kill(victims.pop(), signal.SIGKILL)
        put(self, key, held)

    monkeypatch.setattr(KeptParts, "put", kill_and_put)
    found, _ = made(small, tmp_path / "q.onnx", cluster=processes.scheduler_address)
    assert found == (small / "alone.onnx").read_bytes()
    assert not victims


def test_the_command_with_a_bound_on_memory(small, tmp_path, processes, run):
    code, out, _ = run(
        "quantize", small / "m.onnx", "-o", tmp_path / "q.onnx", "--bits", 4, "--method", "gptq",
        "--data", small / "d.npz", "--memory", "545MB", "--json",
        "--cluster", processes.scheduler_address,
    )  # fmt: skip
    assert code == 0
    assert '"notes"' in out
    assert (tmp_path / "q.onnx").read_bytes() == (small / "alone.onnx").read_bytes()


def test_a_plan_is_applied_on_workers(small, tmp_path, threads, monkeypatch):
    real, calls, data = encode_alone, [], str(small / "d.npz")
    monkeypatch.setattr(encoding_task, "encode_alone", lambda w: calls.append(w) or real(w))
    plan = lwqc.plan(small / "m.onnx", data=data, recipe="gptq")

    def applied(out, **options):
        done = lwqc.apply(small / "m.onnx", plan, data=data, **options)
        done.save(out, verify=False)

    with one_thread():
        applied(tmp_path / "a.onnx")
    assert not calls
    Context().run(applied, tmp_path / "b.onnx", cluster=threads.scheduler_address)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert len(calls) == len(plan.quantize) == 2 * BLOCKS


def test_what_a_killed_run_had_kept_is_not_asked_for_again(small, tmp_path, threads, monkeypatch):
    real, calls = encode_alone, []

    def third_is_too_much(work):
        calls.append(work)
        if len(calls) == 3:
            raise InputError("no more")
        return real(work)

    monkeypatch.setattr(encoding_task, "encode_alone", third_is_too_much)
    monkeypatch.setattr(encoded_on_cluster, "_AHEAD", 0)  # one after the other
    with pytest.raises(InputError, match="no more"):
        made(small, tmp_path / "q.onnx", cluster=threads.scheduler_address)
    assert not (tmp_path / "q.onnx").exists()
    kept = len(list((tmp_path / "q.onnx.parts" / "codes").glob("*.npz")))
    found, notes = made(small, tmp_path / "q.onnx", cluster=threads.scheduler_address)
    assert found == (small / "alone.onnx").read_bytes()
    assert any("an earlier run had kept" in note for note in notes)
    assert kept == 2
    assert len(calls) == 3 + 2 * BLOCKS - kept


def test_what_hangs_is_encoded_here(small, tmp_path, threads, monkeypatch):
    real, over, hung = encode_alone, threading.Event(), []

    def second_hangs(work):
        hung.append(work)
        if len(hung) == 2:
            over.wait()
        return real(work)

    monkeypatch.setattr(encoding_task, "encode_alone", second_hangs)
    monkeypatch.setattr(connection, "PATIENCE_S", 1.0)
    try:
        found, notes = made(small, tmp_path / "q.onnx", cluster=threads.scheduler_address)
    finally:
        over.set()
    assert found == (small / "alone.onnx").read_bytes()
    assert any("were encoded here, as no worker had answered" in note for note in notes)


def test_workers_that_do_not_see_the_folder_are_sent_arrays(small, tmp_path, threads, monkeypatch):
    """From the first one on that says so."""
    asked, sent = [], []

    def unseen(self):
        asked.append(self.path)
        raise shared_folder.UnseenError("no such file")

    def noted(work):
        sent.append(work)
        return real(work)

    real = encode_alone
    monkeypatch.setattr(shared_folder.LaidArray, "opened", unseen)
    monkeypatch.setattr(encoding_task, "encode_alone", noted)
    found, _ = made(small, tmp_path / "q.onnx", cluster=threads.scheduler_address)
    assert found == (small / "alone.onnx").read_bytes()
    assert len(sent) == 2 * BLOCKS
    assert 0 < len(asked) <= 2 * 2  # as many as were on their way
    assert not any(isinstance(work.weight, np.memmap) for work in sent)


def test_a_file_that_changed_is_written_again(small, tmp_path, threads, monkeypatch):
    laid, real = [], shared_folder.SharedFolder.lay

    def damage_the_first(self, array):
        found = real(self, array)
        if not laid:
            with open(found.path, "r+b") as file:
                file.write(b"damaged!")
        laid.append(found)
        return found

    monkeypatch.setattr(shared_folder.SharedFolder, "lay", damage_the_first)
    found, _ = made(small, tmp_path / "q.onnx", cluster=threads.scheduler_address)
    assert found == (small / "alone.onnx").read_bytes()
    assert len(laid) > 2 * 2 * BLOCKS  # a weight and a Gram matrix for each, and one more
    assert not any(os.path.exists(one.path) for one in laid)


@pytest.mark.parametrize("fails", ["__init__", "lay"])
def test_where_nothing_can_be_written_arrays_are_sent(small, tmp_path, threads, monkeypatch, fails):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_folder.SharedFolder, fails, full)
    found, _ = made(small, tmp_path / "q.onnx", cluster=threads.scheduler_address)
    assert found == (small / "alone.onnx").read_bytes()


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_lie_in_a_folder_as_they_are_in_memory(tmp_path, order):
    folder = shared_folder.SharedFolder(tmp_path / "sent")
    array = np.asarray(normal(6, 4, seed=1), order=order)
    first, again = folder.lay(array), folder.lay(array)
    assert first == again
    found = pickle.loads(pickle.dumps(first)).opened()
    assert np.array_equal(found, array)
    assert found.flags.c_contiguous == array.flags.c_contiguous
    found[0, 0] += 1  # stays here
    assert np.array_equal(first.opened(), array)
    folder.release(first)
    assert np.array_equal(again.opened(), array)
    folder.release(again)
    with pytest.raises(shared_folder.UnseenError):
        first.opened()
    folder.remove()
    assert not (tmp_path / "sent").exists()


def flipped(arrays, *more):
    codes = arrays["codes"].copy()
    codes.reshape(-1)[7] ^= 1
    return Answer({**arrays, "codes": codes}, *more)


def test_damaged_answers_are_asked_for_again(small, tmp_path, threads, monkeypatch):
    calls = []

    def first_two_are_damaged(*parts):
        calls.append(parts)
        return (flipped if len(calls) < 3 else Answer)(*parts)

    monkeypatch.setattr(encoding_task, "Answer", first_two_are_damaged)
    found, _ = made(small, tmp_path / "q.onnx", cluster=threads.scheduler_address)
    assert found == (small / "alone.onnx").read_bytes()
    assert len(calls) == 2 * BLOCKS + 2

    monkeypatch.setattr(encoding_task, "Answer", flipped)
    with pytest.raises(LwqcError, match="is lost again and again: bytes of a weight or its codes"):
        made(small, tmp_path / "r.onnx", cluster=threads.scheduler_address)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"numpy": "1.0"}, r"worker inproc://\S+ has numpy 1.0, here is "),
        ({"arithmetic": "?"}, r"sums on worker inproc://\S+ round otherwise than here"),
    ],
)
def test_workers_that_would_give_other_codes_are_refused(
    small, tmp_path, threads, monkeypatch, changed, line
):
    def of_another(arrays, digest, made_by, worker):
        return Answer(arrays, digest, {**made_by, **changed}, worker)

    monkeypatch.setattr(encoding_task, "Answer", of_another)
    with pytest.raises(InputError, match=line) as caught:
        made(small, tmp_path / "q.onnx", cluster=threads.scheduler_address)
    assert "\n" not in str(caught.value)


def test_other_versions_are_refused_before_any_work(small, tmp_path, threads, monkeypatch):
    monkeypatch.setattr(connection, "versions", lambda: {"lwqc": "0.0", "nothing": "1"})
    with pytest.raises(InputError, match=r"worker .* has lwqc .*, here is 0\.0"):
        made(small, tmp_path / "q.onnx", cluster=threads.scheduler_address)
    assert not list(tmp_path.iterdir())


def test_a_cluster_without_workers_is_one_line(small, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "_CONNECT_S", 0.5)
    with in_threads(0) as cluster, pytest.raises(InputError, match=r"--cluster .*: has no workers"):
        made(small, tmp_path / "q.onnx", cluster=cluster.scheduler_address)


class Client:
    """A cluster of one thread, whose tasks end as told."""

    def __init__(self, error):
        self.error = error

    def get_executor(self, **_):
        return self

    def nthreads(self):
        return {"one": 1}

    def submit(self, function, work):
        future = Future()
        future.set_exception(self.error)
        return future


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (distributed.KilledWorker("task", None, 3), "workers die of u0 again and again; is there"),
        (ConnectionResetError("closed"), "u0 is lost again and again: closed"),
        (ModuleNotFoundError("No module named 'x'"), "has not what lwqc needs: No module named"),
        (InputError("weight holds NaN"), "^u0: weight holds NaN$"),
    ],
)
def test_what_fails_again_and_again_is_one_line(small, error, line):
    work = open_version(small / "m.onnx", data=str(small / "d.npz"))
    made_up = connection.Cluster(Client(error), distributed.KilledWorker)
    encoding = encoded_on_cluster.ClusterEncoding(made_up, "a", work.weights)
    with pytest.raises(LwqcError, match=line):
        encoding.encode({"u0": SiteEntry(weight="w4b32h", method="gptq")})


def test_without_dask_the_extra_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(InputError, match=r"lwqc\[cluster\]"):
        lwqc.quantize(small / "m.onnx", bits=4, cluster="x")


def test_rounding_alone_stays_here_and_is_told(small, tmp_path):
    done = lwqc.quantize(small / "m.onnx", bits=4, cluster="tcp://127.0.0.1:9")
    report = done.save(tmp_path / "q.onnx", verify=False)
    assert any("no weight of the plan takes long to encode" in note for note in report.notes)


def test_layers_one_after_the_other_are_no_work_for_a_cluster(small):
    with pytest.raises(InputError, match="--cluster encodes weights apart"):
        lwqc.quantize(small / "m.onnx", data=str(small / "d.npz"), **GPTQ, sequential=True,
                      cluster="tcp://127.0.0.1:9")  # fmt: skip


def test_what_goes_to_workers_is_foretold(small, tmp_path, run, threads, monkeypatch):
    monkeypatch.setattr(rates, "_WIDTH", 256)
    monkeypatch.setattr(rates, "_MATRICES", ((64, 64), (256, 64), (64, 128), (128, 128)))
    job = [
        "quantize", small / "m.onnx", "-o", tmp_path / "q.onnx", "--bits", 4, "--method", "gptq",
        "--data", small / "d.npz", "--memory", "545MB", "--dry-run", "--json",
    ]  # fmt: skip
    code, told, _ = run(*job, "--cluster", threads.scheduler_address)
    assert code == 0
    stages = {s["stage"]: s for s in json.loads(told)["stages"]}
    weights, grams = 2 * BLOCKS * WIDTH * HIDDEN, BLOCKS * (WIDTH**2 + HIDDEN**2)
    codes = stages["encoding"]["written_bytes"]
    assert stages["encoding"]["network_bytes"] == 4 * weights + 8 * grams + codes
    alone = {s["stage"]: s for s in json.loads(run(*job)[1])["stages"]}
    assert alone["encoding"]["network_bytes"] == 0
    assert not list(tmp_path.iterdir())


def sums(**variables):
    """How a process rounds sums."""
    told = "from lwqc.compile.encoding_task import maker; print(maker()['arithmetic'])"
    done = subprocess.run(
        [sys.executable, "-c", told], env={**os.environ, **variables}, capture_output=True
    )
    return done.stdout


def test_how_sums_round_shows_other_kernels_and_not_threads():
    here = maker()["arithmetic"]
    blas = [one for one in threadpool_info() if one["internal_api"] == "openblas"]
    if not blas or any(one["architecture"] not in ("Haswell", "Zen", "SkylakeX") for one in blas):
        pytest.skip("BLAS is no OpenBLAS for an x86 processor that has other kernels too")
    assert sums(OPENBLAS_NUM_THREADS="2").decode().strip() == here
    assert sums(OPENBLAS_CORETYPE="Nehalem").decode().strip() not in ("", here)


ENTRIES = [
    SiteEntry(weight="w4b32h", method="gptq-order"),
    SiteEntry(weight="w4b32h", method="descent", rank=2, columns=3),
    SiteEntry(weight="vq5x2", method="gptq"),
    SiteEntry(weight="dgw8b32", method="gptq"),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.weight} {entry.method}")
@pytest.mark.parametrize("layout", ["C", "F"])
def test_an_answer_holds_what_a_site_needs(entry, layout, monkeypatch):
    weight, x = normal(48, 64, seed=1, scale=0.1), normal(128, 64, seed=2)
    gram = (x.T @ x / len(x)).astype(np.float64)[None]
    work = ToEncode(np.asarray(weight, order=layout), entry, gram)
    monkeypatch.setattr(distributed, "get_worker", lambda: type("W", (), {"address": "here"}))
    local = encoding_task.encode_alone(work)
    found = pickle.loads(pickle.dumps(encoding_task.answer(pickle.loads(pickle.dumps(work)))))
    held = taken(found, task_key(work), (48, 64), entry)
    for name, array in local.arrays().items():
        assert array.dtype == held.arrays()[name].dtype
        assert np.array_equal(array, held.arrays()[name]), name
    with pytest.raises(Damaged, match="on the way"):
        taken(found, task_key(replace(work, weight=weight + 1)), (48, 64), entry)
    with pytest.raises(Damaged, match="codes of"):
        taken(found, task_key(work), (64, 64), entry)
    fewer = {name: array for name, array in found.arrays.items() if name != "scale"}
    digest = encoding_task._digest(task_key(work), fewer)
    with pytest.raises(Damaged, match="no codes of"):
        taken(replace(found, arrays=fewer, digest=digest), task_key(work), (48, 64), entry)
