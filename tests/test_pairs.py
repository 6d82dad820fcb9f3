"""A share of the pairs of options; `python tests/pairs.py` runs all of them."""

import itertools

import pytest
from pairs import KINDS, judge, make_data, make_rows, run_rows

ROWS = {"train": 3, "convert": 6, "loaders": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("pairs"), largest=17)


def test_the_rows_have_every_pair_once():
    options = {"a": (0, 1, 2), "b": (0, 1), "c": (0, 1, 2, 3)}
    rows = make_rows(options, is_valid=lambda row: row["a"] != 2 or row["b"] != 1)
    for one, other in itertools.combinations(options, 2):
        found = {(row[one], row[other]) for row in rows}
        assert found == set(itertools.product(options[one], options[other]))
    assert len(rows) <= 15
    assert sum(row["a"] == 2 and row["b"] == 1 for row in rows) == 1  # a row that is refused is there once


@pytest.mark.parametrize("kind", KINDS)
def test_some_rows_end_well_or_with_one_line(tmp_path, data, kind):
    _, options, is_valid = KINDS[kind]
    rows = [row for row in make_rows(options, is_valid=is_valid) if "'1100" not in str(row)]
    step = len(rows) // ROWS[kind]
    assert not list(filter(None, run_rows(kind, rows[::step][: ROWS[kind]], data, tmp_path, seconds=60)))


@pytest.mark.parametrize(
    ("codes", "text", "problem"),
    [
        ([0], "", ""),
        ([2, 2], "error: no such file\n", ""),
        ([2], "", "0 lines of error"),
        ([1], "Traceback", "exit codes"),
        ([0, 2], "error: x\n", "exit codes"),
        ([None], "", "it hangs"),
    ],
)
def test_a_bad_end_is_noticed(codes, text, problem):
    assert problem in judge(codes, text) and bool(judge(codes, text)) == bool(problem)
