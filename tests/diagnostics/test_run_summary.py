from __future__ import annotations

import builtins
import sys
from dataclasses import replace
from typing import get_args

import pytest
from profile_builders import A, B, small_profile, task, with_slow_link

import dask_onnx as dx
from dask_onnx.diagnostics.profiling.finished_profile import FinishedProfile
from dask_onnx.diagnostics.profiling.profile_rows import By
from dask_onnx.diagnostics.profiling.profiler import Profiler


def test_a_summary_fits_one_screen_and_tells_all_time():
    summary = FinishedProfile(small_profile()).summary()
    assert summary.slot_seconds == 20.0 == pytest.approx(sum(summary.shares.values()))
    lines = str(summary).split("\n")
    assert len(lines) < 40
    assert summary.rows == 8
    assert any("50.0%" in line for line in lines)  # share of the rows whose nodes were timed


def test_advice_names_what_costs_most_and_what_it_would_save():
    tasks = (task("first", A, 1.0, 9.0), task("second", B, 9.0, 9.5))
    advice = FinishedProfile(small_profile(tasks=tasks)).summary().advice
    assert 1 <= len(advice) <= 3
    assert [each.seconds for each in advice] == sorted((a.seconds for a in advice), reverse=True)
    assert "first" in advice[0].what
    assert 0 < advice[0].share < 1
    assert advice[0].seconds == pytest.approx(advice[0].share * 10.0)


def test_names_from_models_cannot_break_lines_of_a_summary():
    profile = small_profile()
    nodes = tuple(replace(node, name="a\nb\x1b[2J") for node in profile.nodes)
    text = str(FinishedProfile(replace(profile, nodes=nodes)).summary())
    assert "\x1b" not in text
    assert "a\\nb" in text


@pytest.mark.parametrize("by", get_args(By))
def test_each_table_has_rows_with_the_same_columns(by):
    prof = FinishedProfile(small_profile())
    rows = prof.rows(by)
    assert rows
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert list(prof.table(by).columns) == list(rows[0])


def test_tables_have_the_numbers_of_the_records():
    prof = FinishedProfile(small_profile())
    (link,) = [row for row in prof.rows("link") if row["receiver"] == B]
    assert link["wire_bytes"] == 8_000_000
    assert link["ratio"] == 2.0
    assert link["bytes_per_second"] == pytest.approx(8e6)
    first = next(row for row in prof.rows("stage") if row["stage"] == "first")
    assert first["run"] == pytest.approx(3.8)
    assert first["predicted_run"] == 3.0
    assert first["sent_bytes"] == 8_000_000
    node = prof.rows("node")[0]
    assert node["flops_per_second"] == pytest.approx(2e8)
    (row,) = [row for row in prof.rows("block") if row["block"] == 1]
    assert row["latency"] == pytest.approx(5.0)
    assert {row["worker"]: row["received_bytes"] for row in prof.rows("worker")}[B] == 8_000_000


def test_an_unknown_table_is_refused_with_the_known_ones():
    with pytest.raises(dx.InputError) as caught:
        FinishedProfile(small_profile()).rows("stages")
    assert [each.value for each in caught.value.suggestions] == list(get_args(By))


def test_tables_need_pandas_and_rows_do_not(monkeypatch):
    known = builtins.__import__

    def without_pandas(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError("no pandas")
        return known(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_pandas)
    prof = FinishedProfile(small_profile())
    assert prof.rows("stage")
    with pytest.raises(dx.InputError):
        prof.table("stage")


def many_transfers(profile):
    """Return a profile with six transfers that differ a little."""
    (first, *_) = profile.transfers
    found = tuple(replace(first, start=i, stop=i + 0.5 * (1 + 0.02 * (i % 3))) for i in range(1, 7))
    return replace(profile, transfers=found)


def test_a_slower_link_is_named_and_nothing_else():
    before = many_transfers(small_profile())
    comparison = FinishedProfile(before).compare(FinishedProfile(with_slow_link(before, 3.0)))
    (change,) = comparison.slower
    assert (change.kind, change.name) == ("link", "tcp://10.0.0.1 -> tcp://10.0.0.2")
    assert change.change == pytest.approx(1 / 3 - 1)
    assert change.noise < 0.2
    assert change.samples == 6
    assert f"{change.kind} {change.name}" in str(comparison)


def test_equal_profiles_have_no_changes():
    prof = FinishedProfile(many_transfers(small_profile()))
    assert prof.compare(prof).slower == ()


def test_a_single_sample_decides_nothing():
    before = small_profile(transfers=small_profile().transfers[:1])
    comparison = FinishedProfile(before).compare(FinishedProfile(with_slow_link(before, 5.0)))
    assert comparison.slower == ()


def test_links_of_workers_that_differ_by_ports_only_are_told_apart_by_their_stages():
    one, other = "tcp://127.0.0.1:1111", "tcp://127.0.0.1:2222"
    names = {A: one, B: other}

    def moved(profile):
        return replace(
            profile,
            workers=tuple(replace(w, name=names[w.name]) for w in profile.workers),
            tasks=tuple(replace(t, worker=names[t.worker]) for t in profile.tasks),
            transfers=tuple(
                replace(t, sender=names[t.sender], receiver=names[t.receiver])
                for t in profile.transfers
            ),
        )

    before = moved(many_transfers(small_profile()))
    names = {A: "tcp://127.0.0.1:3333", B: "tcp://127.0.0.1:4444"}
    after = moved(with_slow_link(many_transfers(small_profile()), 3.0))
    (change,) = FinishedProfile(before).compare(FinishedProfile(after)).slower
    assert change.name == "tcp://127.0.0.1 with first -> tcp://127.0.0.1 with second"


def test_stages_that_only_one_has_are_told():
    profile = small_profile()
    tasks = tuple(task for task in profile.tasks if task.label == "first")
    comparison = FinishedProfile(profile).compare(FinishedProfile(replace(profile, tasks=tasks)))
    assert "stage second" in comparison.missing


def test_a_profile_is_compared_with_a_profile_only():
    with pytest.raises(dx.InputError) as caught:
        FinishedProfile(small_profile()).compare(small_profile())
    assert caught.value.option == "other"


def test_a_profile_has_no_result_before_its_end():
    prof = dx.profile()
    assert isinstance(prof, Profiler)
    with pytest.raises(dx.InputError):
        prof.summary()
    assert "not ended" in repr(prof)


def test_blocks_of_two_requests_are_apart():
    profile = small_profile()
    again = tuple(
        replace(
            each, **{name: getattr(each, name) + 8.5 for name in ("submitted", "start", "stop")}
        )
        for each in profile.tasks[:1]
    )
    rows = FinishedProfile(replace(profile, tasks=profile.tasks + again)).rows("block")
    found = {(row["request"], row["block"]): (row["tasks"], row["latency"]) for row in rows}
    assert found == {(0, 0): (2, 5.0), (0, 1): (2, 5.0), (1, 0): (1, 2.0)}
