"""Records of tasks from the notes of the scheduler and of workers, whose clocks differ."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dask_onnx.cluster.profile_scheduler_plugin import CANCELLED, Attempt, SchedulerNotes
from dask_onnx.cluster.profile_worker_plugin import WorkerNotes
from dask_onnx.core.meters import PhaseNote, StageNote
from dask_onnx.diagnostics.profiling.profile_assembly import (
    Notes,
    error_records,
    sent_notes,
    task_records,
)

A = "tcp://10.0.0.1:1000"
BEGAN = 1000.0
OFFSET = 60.0
"""Seconds by which the worker's clock is ahead."""


def attempt(start: float, stop: float, shift: float) -> Attempt:
    """Return an attempt from `start` to `stop` seconds, with times as Dask's worker tells them."""
    return Attempt(
        key="('first-0123', 0)",
        name="first",
        block=0,
        submitted=BEGAN,
        ready=BEGAN,
        assigned=BEGAN + start - 0.01,
        finished=BEGAN + stop + 0.01,
        worker=A,
        start=BEGAN + OFFSET + start + shift,
        stop=BEGAN + OFFSET + stop + shift,
        nbytes=8,
        outcome="memory",
        error="",
        has_dependencies=False,
        is_stage=True,
    )


def stage_note(start: float, seconds: float, rows: int) -> StageNote:
    """Return a note of a stage by the worker's own clock."""
    at = BEGAN + OFFSET + start
    return StageNote(
        *(A, "('first-0123', 0)", 1, at, seconds, "token", "first", "model", "onnxruntime", 1),
        *(seconds, 1, rows, 1, 32, 32),
    )


def notes_of(attempts, stages=(), shifts=((0.0, -OFFSET),), phases=()) -> Notes:
    """Return the notes of one worker; shifts are of Dask's estimate, by seconds of the profile."""
    presence = [(A, 1, None, "a", BEGAN, 0.0)]
    own = WorkerNotes(
        worker=A,
        host="a",
        offset=OFFSET,
        error=0.001,
        shifts=[(BEGAN + OFFSET + at, shift) for at, shift in shifts],
        executing=[],
        phases=[tuple(each) for each in phases],
        stages=[tuple(each) for each in stages],
        incoming=[],
        outgoing=[],
        has_missed=False,
        gauges=[],
        digests=[],
        peak=0,
        dropped=0,
        gpu="",
    )
    scheduler = SchedulerNotes(BEGAN, list(attempts), 0, [], [], presence, {}, [], [])
    return Notes(BEGAN, 10.0, scheduler, {A: own})


@pytest.mark.parametrize("wrong", [1.3, -1.3, 0.4])
def test_a_wrong_estimate_of_the_clock_is_taken_out_though_a_later_one_would_fit(wrong):
    shifts = ((0.0, -OFFSET), (3.0, -OFFSET + wrong), (3.5, -OFFSET))
    notes = notes_of([attempt(3.1, 3.4, -OFFSET + wrong)], [stage_note(3.1, 0.3, 8)], shifts)
    (task,) = task_records(notes)
    assert (task.start, task.stop) == pytest.approx((3.1, 3.4), abs=1e-3)
    assert task.rows == 8 and task.stage == "token"
    assert all(phase.start + 1e-3 >= 3.1 for phase in task.phases)


def test_what_the_only_attempt_noted_is_kept_though_its_times_differ():
    # The estimate had changed before the worker's plugin looked.
    notes = notes_of([attempt(3.1, 3.4, -OFFSET + 0.5)], [stage_note(3.1, 0.3, 8)])
    (task,) = task_records(notes)
    assert task.rows == 8
    assert task.start >= 3.0 and task.stop <= 3.5


def test_each_attempt_on_a_worker_has_its_own_notes():
    again = attempt(5.0, 6.0, -OFFSET)
    notes = notes_of(
        [attempt(1.0, 2.0, -OFFSET), again], [stage_note(1.0, 1.0, 3), stage_note(5.0, 1.0, 4)]
    )
    assert [task.rows for task in task_records(notes)] == [3, 4]


def test_runs_of_one_stage_add_their_rows_and_stages_in_turn_do_not():
    first, second = stage_note(3.0, 0.1, 5), stage_note(3.1, 0.1, 3)
    after = stage_note(3.2, 0.1, 8)._replace(token="next", label="next")
    failed = stage_note(3.3, 0.1, 8)._replace(error="StageError")
    notes = notes_of([attempt(3.0, 3.5, -OFFSET)], [first, second, after, failed])
    (task,) = task_records(notes)
    assert task.rows == 8 and task.runs == 4


def test_a_cancelled_task_has_the_time_that_it_took_and_is_no_error():
    cancelled = attempt(3.0, 3.9, 0.0)._replace(start=0.0, stop=0.0, outcome=CANCELLED)
    notes = notes_of([cancelled], [stage_note(3.0, 1.5, 8)])
    (task,) = task_records(notes)
    assert (task.start, task.stop) == pytest.approx((3.0, 4.5), abs=1e-3)
    assert task.error == CANCELLED
    assert error_records(notes) == []


def test_a_lost_attempt_is_an_error():
    lost = attempt(1.0, 2.0, 0.0)._replace(start=0.0, stop=0.0, outcome="released")
    (error,) = error_records(notes_of([lost]))
    assert (error.kind, error.count) == ("lost", 1)


def test_phases_are_those_of_their_task():
    at = BEGAN + OFFSET + 3.1
    phase = PhaseNote(A, "('first-0123', 0)", 1, "run", at, 0.2, 0.2)
    other = phase._replace(key="other")
    notes = notes_of(
        [attempt(3.0, 3.5, -OFFSET)], [stage_note(3.05, 0.4, 8)], phases=(phase, other)
    )
    (task,) = task_records(notes)
    assert task.seconds_of("run") == pytest.approx(0.2)
    assert task.seconds_of("stage") == pytest.approx(0.2)


def test_notes_that_were_sent_are_those_of_a_worker():
    own = notes_of([]).workers[A]
    assert sent_notes({**own._asdict(), "profile": "abc"}) == own
    assert replace(notes_of([]), workers={}).span_of(A, BEGAN + 1, BEGAN + 2) == (1.0, 2.0)
