"""Facts of the page on models: edges past other tasks, columns, rates, and time left."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from dask_onnx.cluster.cluster_snapshot import StageActivity
from dask_onnx.cluster.page_facts import (
    PageFacts,
    columns_of,
    rates_of,
    seconds_left,
    stage_edges,
    tasks_left,
)


def stage(name="a", seconds=0.5, completed=0, **states):
    states = {kind.replace("_", "-"): count for kind, count in states.items()}
    return StageActivity(name, "m", states, completed, seconds, 0)


def facts(time, *stages):
    return PageFacts(time, stages, frozenset(), (), (), {}, {}, (), {}, 0, (), 0.0, ())


def group(name, *dependencies):
    return SimpleNamespace(
        name=name, prefix=SimpleNamespace(name=name), dependencies=list(dependencies)
    )


def test_tasks_whose_results_are_not_needed_any_more_are_not_left():
    assert tasks_left(stage(released=5, waiting=1, queued=2, no_worker=4, processing=8)) == 15


def test_time_left_is_that_of_all_threads():
    assert seconds_left([stage(waiting=8), stage(seconds=2.0, processing=2)], 4) == 2.0
    assert seconds_left([stage(waiting=8)], 0) == 0.0


def test_rates_are_tasks_per_second_and_never_negative():
    before, now = facts(10.0, stage(completed=4)), facts(12.0, stage(completed=9), stage("b"))
    assert rates_of(now, before) == {"a": 2.5, "b": 0.0}
    assert rates_of(now, None) == rates_of(now, now) == {}
    assert rates_of(facts(12.0, stage(completed=1)), before) == {"a": 0.0}


def test_edges_go_past_other_groups_and_circles_end():
    first = group("a")
    other = group("load", first)
    loop = group("loop", other)
    loop.dependencies.append(loop)
    other.dependencies.append(loop)
    last = group("b", loop, first)
    found = stage_edges([first, other, loop, last], frozenset("ab"))
    assert found == {("a", "b")}


@pytest.mark.parametrize(
    ("edges", "columns"),
    [
        ([("a", "b"), ("b", "c")], [["a"], ["b"], ["c"]]),
        ([("a", "c"), ("b", "c")], [["a", "b"], ["c"]]),
        ([("a", "b"), ("b", "a")], [["b"], ["a"]]),
        ([], [["a", "b"]]),
    ],
)
def test_each_name_is_to_the_right_of_what_it_reads(edges, columns):
    names = sorted({each for edge in edges for each in edge} or {"a", "b"})
    assert columns_of(edges, names) == columns


def test_columns_of_nothing_are_none():
    assert columns_of([], []) == []


def test_a_long_chain_has_a_column_for_each():
    names = [f"n{number:04}" for number in range(3000)]
    edges = list(itertools.pairwise(names))
    assert columns_of(edges, reversed(names)) == [[name] for name in names]
