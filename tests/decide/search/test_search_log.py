from __future__ import annotations

import pytest

from lwqc.decide.search.log import SearchLog
from lwqc.errors import InputError


def test_scores_and_facts_come_back(tmp_path) -> None:
    path = tmp_path / "out.search"
    log = SearchLog(path)
    log.add("joint", 1, {(0, 2): 0.1 + 0.2, (1, 1): float("inf")})
    assert log.fact("times", lambda: [1.5]) == [1.5]
    again = SearchLog(path, resume=True)
    assert again.get("joint", 1, (0, 2)) == 0.1 + 0.2
    assert again.get("joint", 1, (1, 1)) == float("inf")
    assert again.get("joint", 0, (0, 2)) is None
    assert again.fact("times", lambda: [9.9]) == [1.5]
    assert again.known == 2


def test_half_a_line_of_a_killed_run_is_cut_off(tmp_path) -> None:
    path = tmp_path / "out.search"
    SearchLog(path).add("joint", 0, {(1,): 0.5})
    with path.open("a") as file:
        file.write('{"k": "joint", "s": 0, "c": [2')
    log = SearchLog(path, resume=True)
    assert log.known == 1
    log.add("joint", 0, {(2,): 0.25})
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
