"""Records of running tasks: what is known after a process died, and by whom."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import dask
import pytest

from dask_onnx.runtime import run_records as module
from dask_onnx.runtime.run_records import RunningTask, RunRecords, run_records

RUNS, WAITED = RunningTask(("made-0123", 3, 0)), RunningTask(("made-0123", 4, 0))
DIES = """
import os, signal, sys
import dask
dask.config.set({"onnx.store.directory": sys.argv[1]})
from dask_onnx.runtime.run_records import RunningTask, run_records
records = run_records()
records.end(records.begin(RunningTask(("made-0123", 2, 0))))
records.begin(RunningTask(("made-0123", 3, 0)))
if sys.argv[2] == "wait":
    print("ready", flush=True)
    sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def records(tmp_path, monkeypatch):
    with dask.config.set({"onnx.store.directory": str(tmp_path)}):
        yield run_records()


def look(records: RunRecords) -> None:
    records._refresh(force=True)


def test_a_task_that_ran_in_a_killed_process_is_suspect_and_others_are_not(records, tmp_path):
    assert not records.is_suspect(RUNS, "stage")
    process = subprocess.run([sys.executable, "-c", DIES, str(tmp_path), "now"], check=False)
    assert process.returncode < 0
    once = RunningTask(RUNS.key, deaths=1)
    assert records.is_suspect(once, "stage")
    for key in (WAITED.key, ("made-0123", 2, 0)):
        assert not records.is_suspect(RunningTask(key, deaths=1), "stage")


def test_a_task_that_runs_in_a_live_process_is_not_suspect(records, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", DIES, str(tmp_path), "wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    once = RunningTask(RUNS.key, deaths=1)
    assert not records.is_suspect(once, "stage")
    process.communicate(b"")
    assert records.is_suspect(once, "stage")


def test_two_deaths_make_a_task_suspect_where_no_record_can_be_read(records):
    assert not records.is_suspect(RunningTask("other", deaths=1), "stage")
    assert records.is_suspect(RunningTask("other", deaths=2), "stage")


def test_a_stage_that_crashed_on_two_tasks_is_guarded_for_all(records):
    task = RunningTask("new")
    records.note_crash("stage", RUNS)
    records.note_crash("stage", RUNS)
    look(records)
    assert not records.is_suspect(task, "stage")
    records.note_crash("stage", WAITED)
    look(records)
    assert records.is_suspect(task, "stage")
    assert not records.is_suspect(task, "another")


def test_old_records_count_no_more_and_are_removed(records, tmp_path):
    subprocess.run([sys.executable, "-c", DIES, str(tmp_path), "now"], check=False)
    records.note_crash("stage", RUNS)
    old = time.time() - 2 * module._KEPT_SECONDS
    others = [path for path in records.folder.iterdir() if path != records.own]
    assert len(others) == 2
    for path in others:
        os.utime(path, (old, old))
    look(records)
    assert not records.is_suspect(RunningTask(RUNS.key, deaths=1), "stage")
    assert list(records.folder.iterdir()) == [records.own]


def test_more_threads_than_places_run_unrecorded(records):
    places = [records.begin(RUNS) for _ in range(module._SLOTS)]
    assert len(set(places)) == module._SLOTS
    assert records.begin(WAITED) is None
    records.end(None)
    for place in places:
        records.end(place)
    assert bytes(records.page[:]) == bytes(len(records.page))


def test_a_folder_that_cannot_be_made_leaves_runs_unrecorded(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with dask.config.set({"onnx.store.directory": str(tmp_path)}):
        records = run_records()
    assert records.page is None
    assert records.begin(RUNS) is None
    assert not records.is_suspect(RUNS, "stage")
