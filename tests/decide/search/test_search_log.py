from __future__ import annotations

import resource

import pytest

from lwqc.decide.search.log import SearchLog
from lwqc.errors import InputError


def test_scores_and_facts_come_back(tmp_path) -> None:
    path = tmp_path / "out.search"
    log = SearchLog(path)
    log.add("joint", 1, {(0, 2): 0.1 + 0.2, (1, 1): float("inf")})
    assert log.fact("times", lambda: [1.5], list[float]) == [1.5]
    log.close(remove=False)
    again = SearchLog(path, resume=True)
    assert again.get("joint", 1, (0, 2)) == 0.1 + 0.2
    assert again.get("joint", 1, (1, 1)) == float("inf")
    assert again.get("joint", 0, (0, 2)) is None
    assert again.fact("times", lambda: [9.9], list[float]) == [1.5]
    assert again.known == 2


def test_half_a_line_of_a_killed_run_is_cut_off(tmp_path) -> None:
    path = tmp_path / "out.search"
    SearchLog(path).add("joint", 0, {(1,): 0.5})
    with path.open("a") as file:
        file.write('{"k": "joint", "s": 0, "c": [2')
    log = SearchLog(path, resume=True)
    assert log.known == 1
    log.add("joint", 0, {(2,): 0.25})
    log.close(remove=False)
    assert SearchLog(path, resume=True).known == 2


def test_a_new_search_starts_over_and_a_finished_one_leaves_nothing(tmp_path) -> None:
    path = tmp_path / "out.search"
    SearchLog(path).add("joint", 0, {(1,): 0.5})
    assert SearchLog(path).known == 0
    SearchLog(path).close(remove=True)
    assert not path.exists()


def test_another_search_and_other_files_are_refused(tmp_path) -> None:
    path = tmp_path / "out.search"
    SearchLog(path).must_equal("model", "a")
    SearchLog(path, resume=True).must_equal("model", "a")
    with pytest.raises(InputError, match="another model"):
        SearchLog(path, resume=True).must_equal("model", "b")
    path.write_text("hello\n")
    with pytest.raises(InputError, match="not a search file"):
        SearchLog(path, resume=True)
    with pytest.raises(InputError, match="nothing to resume"):
        SearchLog(tmp_path / "none", resume=True)
    with pytest.raises(InputError, match="cannot be written"):
        SearchLog(tmp_path / "no" / "folder")


def test_files_of_others_are_neither_cut_nor_followed(tmp_path) -> None:
    path = tmp_path / "out.search"
    path.write_text("my notes\n")
    with pytest.raises(InputError, match="is not a search file"):
        SearchLog(path)
    link = tmp_path / "link.search"
    link.symlink_to(path)
    for resume in (False, True):
        with pytest.raises(InputError, match="is a link"):
            SearchLog(link, resume=resume)
    assert path.read_text() == "my notes\n"
    (tmp_path / "dangling.search").symlink_to(tmp_path / "none")
    with pytest.raises(InputError, match="is a link"):
        SearchLog(tmp_path / "dangling.search")
    assert not (tmp_path / "none").exists()


def test_two_searches_do_not_write_one_file(tmp_path) -> None:
    path = tmp_path / "out.search"
    first = SearchLog(path)
    for resume in (False, True):
        with pytest.raises(InputError, match="another search is writing"):
            SearchLog(path, resume=resume)
    first.close(remove=False)
    SearchLog(path, resume=True)


@pytest.mark.parametrize("value", ["-1", "{}", "NaN", "1e999", "[]", "null"])
def test_facts_are_of_their_kind(tmp_path, value) -> None:
    path = tmp_path / "out.search"
    path.write_text(f'{{"lwqc_search": 1}}\n{{"fact": "memory", "value": {value}}}\n')
    with pytest.raises(InputError, match="memory"):
        SearchLog(path, resume=True).fact("memory", lambda: 0)


def test_a_full_disk_is_one_error_and_leaves_no_log(tmp_path, monkeypatch) -> None:
    path = tmp_path / "out.search"
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # Python 3.11 leaves half of it
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written: File too large"):
            SearchLog(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()
