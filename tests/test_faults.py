"""A share of the table of faults, within seconds. `python -m tests.faults` tries all of it.

Kills of conversions and of runs are tried in test_convert.py and test_resume.py.
"""

import faults
import pytest

SHARE = {
    "one bit flipped in a lossless store": 120,
    "one bit flipped in a --no-tile store": 60,
    "one bit flipped in a raw store": 60,
    "a store cut off": 20,
    "the clock jumps back by hours, in a conversion that is killed": 1,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return faults.Bench(tmp_path_factory.mktemp("faults"), seed=0)


@pytest.mark.parametrize("fault", SHARE)
def test_nothing_is_lost_in_silence(bench, fault):
    found = faults.try_row(bench, fault, SHARE[fault])
    assert found["tries"] == SHARE[fault]
    assert not found["lost"], found["details"]


def test_the_report_has_a_line_for_each_fault_and_names_what_was_lost(bench, tmp_path, monkeypatch):
    def lose(bench, tries):
        yield faults.Outcome(faults.SAME)
        yield faults.Outcome(faults.SILENT, "the cat ate it")

    monkeypatch.setitem(faults.ROWS, "a cat", (lose, 2))
    faults.write_report([faults.try_row(bench, "a cat", 2)], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "| a cat | 2 | 1 | 0 | 0 | 1 |" in text and "a cat: lost: the cat ate it" in text
    monkeypatch.setitem(faults.ROWS, "a dog", (lambda bench, tries: iter([faults.Outcome(faults.SAME)]), 1))
    faults.write_report([faults.try_row(bench, "a dog", 1)], tmp_path / "report.md")
    both = (tmp_path / "report.md").read_text()
    assert "| a dog | 1 | 1 | 0 | 0 | 0 |" in both
    assert set(text.splitlines()) < set(both.splitlines())  # what was tried earlier is kept
