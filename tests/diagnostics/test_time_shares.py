from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_builders import A, B, small_profile, task

from dask_onnx.diagnostics.profiling.time_shares import CATEGORIES, time_shares


def test_every_second_of_each_slot_is_in_one_category():
    shares = time_shares(small_profile())
    assert tuple(shares.seconds) == CATEGORIES
    assert shares.total == pytest.approx(20.0)
    assert sum(shares.by_worker[A].values()) == pytest.approx(10.0)
    assert shares.share("model") == pytest.approx((1.9 * 4) / 20)


def test_categories_follow_from_what_a_worker_waits_for():
    shares = time_shares(small_profile())
    on_a, on_b = shares.by_worker[A], shares.by_worker[B]
    assert on_a["building sessions"] == pytest.approx(0.2)
    assert on_a["model"] == pytest.approx(3.8)
    # The first task is on A from 0.75 on. Until then two tasks look for two free slots.
    assert on_a["Dask"] == pytest.approx(0.5)
    assert on_b["Dask"] == pytest.approx(0.25 + 0.5)  # and B has its input half a second before
    assert on_b["transfer"] == pytest.approx(0.5)
    assert on_b["waiting"] == pytest.approx(3.0 - 0.75)
    assert on_a["idle"] == pytest.approx(0.5 + 2.0)
    assert on_a["waiting"] == pytest.approx(8.0 - 5.0)


def test_workers_that_come_and_go_count_while_they_are_there():
    first, second = small_profile().workers
    profile = small_profile(workers=(first, replace(second, joined=2.0, left=9.0)))
    assert time_shares(profile).total == pytest.approx(17.0) == profile.slot_seconds


def test_tasks_of_others_are_told_apart():
    profile = small_profile(others=((A, 5.0, 9.0),))
    shares = time_shares(profile)
    assert shares.seconds["other clients"] == pytest.approx(4.0)
    assert shares.total == pytest.approx(20.0)


def test_more_tasks_than_slots_share_the_slots():
    profile = small_profile(tasks=(task("first", A, 0.0, 10.0), task("second", A, 0.0, 10.0)))
    shares = time_shares(profile)
    assert shares.by_worker[A]["model"] == pytest.approx(9.9)
    assert shares.total == pytest.approx(20.0)


def test_a_task_without_notes_is_what_its_name_says():
    tasks = (
        task("read-csv", A, 0.0, 2.0, category="reading"),
        task("to-zarr", A, 2.0, 5.0, category="writing"),
        task("sum", A, 5.0, 9.0),
    )
    seconds = time_shares(small_profile(tasks=tasks)).seconds
    assert seconds["reading"] == pytest.approx(2.0)
    assert seconds["writing"] == pytest.approx(3.0)
    assert seconds["other tasks"] == pytest.approx(4.0)


def test_a_profile_of_no_time_has_no_shares():
    shares = time_shares(small_profile(wall=0.0, workers=(), tasks=()))
    assert shares.total == 0.0 == shares.share("model")


spans = st.tuples(st.floats(0, 10), st.floats(0, 3), st.floats(0, 3), st.floats(0, 3))


@given(st.lists(spans, max_size=12), st.integers(1, 3))
def test_shares_add_up_whatever_ran(found, threads):
    tasks = []
    for number, (at, queued, assigned, seconds) in enumerate(found):
        times = (at, at + queued, at + queued + assigned, at + queued + assigned + seconds)
        submitted, ready, start, stop = (min(each, 10.0) for each in times)
        worker = (A, B)[number % 2]
        tasks.append(
            task("sum", worker, start, stop, submitted=submitted, ready=ready, assigned=ready)
        )
    workers = tuple(replace(each, threads=threads) for each in small_profile().workers)
    profile = small_profile(tasks=tuple(tasks), workers=workers)
    shares = time_shares(profile)
    assert shares.total == pytest.approx(20.0 * threads)
    assert min(shares.seconds.values()) >= -1e-9
