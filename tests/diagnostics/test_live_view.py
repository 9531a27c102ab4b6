"""The live view of a cluster, rendered once."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from dask_onnx.cluster.cluster_snapshot import (
    LinkActivity,
    Snapshot,
    StageActivity,
    WorkerActivity,
)
from dask_onnx.diagnostics.live_view import render_snapshot, seconds_left

STAGES = (
    StageActivity("s0.Conv@a", "det", {"processing": 2, "memory": 8}, 10, 0.25, 2**20),
    StageActivity("s1.Relu@b", "det", {"waiting": 10}, 0, 0.0, 0),
    StageActivity("sum", "", {"memory": 1, "erred": 3}, 1, 0.001, 8),
)
WORKER = WorkerActivity(
    "tcp://10.0.0.1:4567", "running", 2, ("s0.Conv@a",), 4, 150.0, 2**29, 2**30, 0, 1e6, 2e6
)
SLOW = dataclasses.replace(WORKER, address="tcp://10.0.0.2:1", status="paused", memory=2**30)
LINKS = tuple(LinkActivity(WORKER.address, f"tcp://10.0.0.{i}:1", i * 2**20) for i in range(2, 30))
NOW = Snapshot(1_000.0, "tcp://10.0.0.9:8786", STAGES, (WORKER, SLOW), LINKS)
BEFORE = dataclasses.replace(
    NOW, time=998.0, stages=(dataclasses.replace(STAGES[0], completed=4), *STAGES[1:])
)


def shown(now, before=None, width=200):
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(render_snapshot(now, before))
    return file.getvalue()


def test_models_stages_workers_and_links_are_shown():
    text = shown(NOW, BEFORE)
    (first, second) = [line.split() for line in text.splitlines() if "@" in line][:2]
    assert first == "det s1.Relu@b 0 10 0 0 0.0/s 0 B".split()  # what has most left comes first
    assert second == "s0.Conv@a 2 0 10 0 3.0/s 250.0 ms 1.0 MiB".split()
    assert "2 workers, 4 threads" in text and "3 failed" in text
    assert "paused" in text and "512.0 MiB / 1.0 GiB" in text and "150%" in text
    assert "and 16 more faster links" in text


def test_the_slowest_links_come_first():
    rows = [line.split() for line in shown(NOW).splitlines() if line.count("tcp://") == 2]
    assert [row[1] for row in rows[:2]] == ["tcp://10.0.0.2:1", "tcp://10.0.0.3:1"]


def test_rates_are_left_open_without_an_earlier_look():
    assert "/s" not in "".join(line for line in shown(NOW).splitlines() if "Conv" in line[:60])
    assert "left" not in shown(NOW).splitlines()[0]


def test_the_end_is_predicted_by_the_slowest_rate():
    rates = {"s0.Conv@a": 3.0, "s1.Relu@b": 2.0}
    assert seconds_left(NOW, rates) == pytest.approx(5.0)
    assert seconds_left(NOW, {}) is None
    # Tasks whose results are not needed any more have run.
    over = dataclasses.replace(STAGES[0], states={"released": 100}, name="over")
    assert seconds_left(dataclasses.replace(NOW, stages=(over,)), {"over": 1.0}) is None


def test_a_cluster_without_work_has_a_view():
    empty = Snapshot(0.0, "tcp://a:1", (), (), ())
    assert "0 workers" in shown(empty) and "0 processing" in shown(empty, empty)


def test_names_cannot_move_the_cursor():
    stages = (dataclasses.replace(STAGES[0], name="a\x1b[2J", model="[red]m"),)
    text = shown(dataclasses.replace(NOW, stages=stages))
    assert "\x1b" not in text and "[red]m" in text
