"""Rows that a run names as ending their process: set aside, and the others run together."""

from __future__ import annotations

import numpy as np
import pytest

from dask_onnx.collections.bad_rows import crashes_at, crashes_in_blocks, run_rows
from dask_onnx.collections.ragged import Ragged, run_by_length
from dask_onnx.core.errors import CrashError

VALUES = np.arange(20)


def crash(rows):
    return CrashError("ended", "mend", rows, stage="made", reason="SIGSEGV", numbers={"signal": 11})


def runner(bad, calls):
    def run(arrays):
        calls.append(len(arrays["x"]))
        rows = [i for i, each in enumerate(arrays["x"]) if each in bad]
        if rows:
            raise crash(rows[:2])  # a search may end before it has found them all
        return {"y": np.asarray(arrays["x"]) * 2}

    return run


def of_rows(positions):
    return {"x": VALUES if positions is None else VALUES[positions]}


@pytest.mark.parametrize("convert", [of_rows, lambda p: {"x": list(of_rows(p)["x"])}])
@pytest.mark.parametrize("bad", [[0], [19], [3, 4, 11], list(range(20))], ids=str)
def test_only_the_named_rows_are_bad(convert, bad):
    calls = []
    found = run_rows(20, convert, runner(bad, calls), stops=False)
    assert found.bad == bad
    assert sorted(found.good) == [row for row in range(20) if row not in bad]
    if found.values is not None:
        np.testing.assert_array_equal(found.values["y"], VALUES[found.good] * 2)
    assert all(type(error) is CrashError for error in found.errors.values())
    assert found.errors[bad[0]].numbers["signal"] == 11


def test_arrays_run_together_again_without_the_bad_rows():
    calls = []
    run_rows(20, of_rows, runner([7], calls), stops=False)
    assert calls == [20, 19]


def test_a_search_that_stops_runs_nothing_more():
    calls = []
    found = run_rows(20, of_rows, runner([7], calls), stops=True)
    assert (found.bad, calls) == ([7], [20])


def test_a_crash_without_rows_is_looked_for_by_halves():
    def run(arrays):
        if 13 in arrays["x"]:
            raise crash([])
        return {"y": arrays["x"]}

    found = run_rows(20, of_rows, run, stops=False)
    assert found.bad == [13]


def test_positions_are_those_among_all_rows():
    with pytest.raises(CrashError) as caught, crashes_at([8, 3, 3, 5]):
        raise crash([0, 1, 2])
    assert caught.value.rows == (3, 8)
    assert caught.value.numbers == {"signal": 11}
    rows = Ragged(np.arange(9), np.array([0, 4, 5, 9]))

    def run(arrays):
        if arrays["x"].shape[1] == 4:
            raise crash([1])
        return {"y": arrays["x"]}

    with pytest.raises(CrashError) as caught:
        run_by_length({"x": rows}, [1, 4], run, frozenset())
    assert caught.value.rows == (2,)


@pytest.mark.parametrize(
    ("numbers", "starts", "rows", "row"),
    [
        ({"block": 2, "row": 1}, (0, 10, 20, 25), (21, 23), 21),
        ({"block": 0, "row": 1}, (0, 10), (1, 3), 1),
        ({"block": 3, "row": 1}, (0, 10, 20, 25), (1, 3), 1),  # not a block of these
        ({"row": 1}, (0, 10, 20), (1, 3), 1),
        ({"block": 1}, (0, 10, 20), (1, 3), None),
        ({"block": 0, "row": 1}, (), (1, 3), 1),
    ],
)
def test_of_rows_in_blocks_the_positions_are_those_among_all_rows(numbers, starts, rows, row):
    error = CrashError("ended", "mend", [1, 3], stage="made", reason="x", numbers=numbers)
    with pytest.raises(CrashError) as caught, crashes_in_blocks(starts):
        raise error
    assert caught.value.rows == rows
    assert caught.value.numbers.get("row") == row
    assert caught.value.numbers.get("block") == numbers.get("block")
    assert caught.value.stage == "made"
