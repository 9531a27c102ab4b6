from __future__ import annotations

import threading
import time

import pytest
from distributed.metrics import context_meter

from dask_onnx.core import meters
from dask_onnx.core.meters import (
    begin_recording,
    count,
    end_recording,
    is_recording,
    metered,
    record_stage,
)


@pytest.fixture
def metrics():
    """Metrics that a task would have, in their order."""
    found = []
    with context_meter.add_callback(lambda label, value, unit: found.append((label, unit, value))):
        yield found


@pytest.fixture
def recording():
    recording = begin_recording("p")
    yield recording
    end_recording(recording)


def test_phases_are_metrics_of_the_task_without_those_inside_them(metrics):
    began = time.perf_counter()
    with metered("session"):
        time.sleep(0.02)
        with metered("weights"):
            time.sleep(0.05)
    whole = time.perf_counter() - began
    names = [(label, unit) for label, unit, _ in metrics]
    assert names == [("onnx-weights", "seconds"), ("onnx-session", "seconds")]
    assert metrics[0][2] >= 0.05 and metrics[1][2] >= 0.02
    assert metrics[0][2] + metrics[1][2] <= whole


def test_bytes_that_a_phase_moves_are_metrics_too(metrics):
    with metered("encode") as moved:
        moved.plain_bytes, moved.wire_bytes = 100, 40
    count("rows", 8)
    assert {row for row in metrics if row[1] != "seconds"} == {
        ("onnx-plain", "bytes", 100),
        ("onnx-wire", "bytes", 40),
        ("onnx-rows", "count", 8),
    }


def test_nothing_is_kept_unless_a_profile_records(metrics):
    assert not is_recording()
    with metered("run"):
        pass
    recording = begin_recording("p")
    end_recording(recording)
    end_recording(recording)
    assert recording.phases == []
    assert len(metrics) == 1


def test_a_recording_has_the_times_of_each_phase_even_if_it_fails(recording):
    before = time.time()
    with pytest.raises(KeyError), metered("read"):
        raise KeyError
    (note,) = recording.phases
    assert note.phase == "read"
    assert (note.owner, note.key) == ("", "")
    assert note.thread == threading.get_ident()
    assert before <= note.start <= time.time()
    assert note.seconds >= note.own_seconds >= 0


def test_a_metered_function_keeps_its_name_and_result(recording):
    @metered("write")
    def save(values):
        """Save."""
        return len(values)

    assert save([1, 2]) == 2
    assert save.__name__ == "save"
    assert [note.phase for note in recording.phases] == ["write"]


def test_recordings_of_workers_of_one_process_are_kept_apart(recording):
    other = begin_recording("p", owner="tcp://worker:1")
    try:
        record_stage(_Note("tcp://worker:1"))
        record_stage(_Note("tcp://worker:2"))
    finally:
        end_recording(other)
    assert [note.owner for note in other.stages] == ["tcp://worker:1"]
    assert recording.stages == []


def test_recordings_are_bounded_and_say_so(recording, monkeypatch):
    monkeypatch.setattr(meters, "_MAX_NOTES", 2)
    for _ in range(5):
        with metered("run"):
            pass
    assert len(recording.phases) == 2
    assert recording.dropped == 3


class _Note:
    def __init__(self, owner):
        self.owner = owner
