"""Times are kept between runs, and a broken or missing file only costs time."""

from __future__ import annotations

import pytest

from lwqc.errors import InputError
from lwqc.runtime import timer
from lwqc.runtime.session import THREADS, SessionSettings
from lwqc.runtime.timing_cache import VARIABLE, TimingCache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_measured_is_known_next_time(folder):
    with TimingCache.opened() as cache:
        cache.add("MatMul 3x4", (0.5, 0.25))
    with TimingCache.opened() as again:
        assert again.known == {"MatMul 3x4": (0.5, 0.25)}
    assert len(list(folder.iterdir())) == 1


def test_two_runs_at_once_lose_nothing(folder):
    with TimingCache.opened() as one, TimingCache.opened() as other:
        one.add("a", (1.0, 2.0))
        other.add("b", (3.0, 4.0))
    with TimingCache.opened() as cache:
        assert set(cache.known) == {"a", "b"}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": [1, -1], "b": [1, 2]}'])
def test_a_broken_file_is_measured_anew(folder, content):
    with TimingCache.opened() as cache:
        cache.add("x", (1.0, 1.0))
    (path,) = folder.iterdir()
    path.write_text(content)
    with TimingCache.opened() as cache:
        assert set(cache.known) <= {"b"}


def test_off_keeps_nothing(folder, monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    with TimingCache.opened() as cache:
        cache.add("x", (1.0, 1.0))
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    with TimingCache.opened() as cache:
        cache.add("x", (1.0, 1.0))
    assert (tmp_path / "file").read_text() == ""


def test_another_number_of_threads_has_other_times(folder, monkeypatch):
    for threads in ("1", "3"):
        monkeypatch.setenv(THREADS, threads)
        assert SessionSettings().build().intra_op_num_threads == int(threads)
        assert SessionSettings(threads=2).build().intra_op_num_threads == 2
        with TimingCache.opened() as cache:
            assert cache.known == {}
            cache.add("MatMul", (1.0, 2.0))
    assert len(list(folder.iterdir())) == 2


def test_shorter_timings_are_kept_apart(folder, monkeypatch):
    for seconds in ("", "0.1", "0.2"):
        monkeypatch.setenv(timer.VARIABLE, seconds)
        with TimingCache.opened() as cache:
            assert cache.known == {}
            cache.add("MatMul", (1.0, 2.0))
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("text", ["two", "-1", "1.5"])
def test_threads_are_a_number(monkeypatch, text):
    monkeypatch.setenv(THREADS, text)
    with pytest.raises(InputError, match=f"{THREADS}={text}: expected a number of threads"):
        SessionSettings().build()


def test_threads_of_an_idle_session_leave_the_cores_to_the_next():
    entry = "session.intra_op.spin_duration_us"
    assert SessionSettings().build().get_session_config_entry(entry) == "1000"
    own = SessionSettings(entries={entry: "0"}).build()
    assert own.get_session_config_entry(entry) == "0"
