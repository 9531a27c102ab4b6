from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from profile_builders import small_profile, with_slow_link

import dask_onnx as dx
from dask_onnx.diagnostics.profiling.profile_files import write_profile
from dask_onnx.diagnostics.profiling.profile_rows import By


@pytest.fixture
def saved(tmp_path):
    """Path of a saved profile with six transfers."""
    profile = small_profile()
    (first, *_) = profile.transfers
    moved = [replace(first, start=i, stop=i + 0.5 + i / 100) for i in range(6)]
    write_profile(replace(profile, transfers=tuple(moved)), tmp_path / "run.json")
    return tmp_path / "run.json"


def test_a_report_is_the_summary(run, saved):
    result = run("report", saved)
    assert result.code == 0
    assert result.out.rstrip("\n") == str(dx.load_profile(saved).summary())


def test_json_has_the_shares_of_all_time(run, saved):
    found = run("report", saved, "--json").json()
    assert sum(found["shares"].values()) == pytest.approx(20.0) == found["slot_seconds"]
    assert {row["stage"] for row in found["stages"]} == {"first", "second"}
    assert found["links"][0]["wire_bytes"] == 24_000_000


@pytest.mark.parametrize("by", get_args(By))
def test_each_table_is_printed_and_is_json(run, saved, by):
    result = run("report", saved, "--by", by)
    assert result.code == 0
    rows = run("report", saved, "--by", by, "--json").json()
    head = result.out.splitlines()[0].split()
    assert head == [name for name in rows[0] if name != "token"] or "building" in head


def test_a_comparison_names_the_slowed_link(run, saved, tmp_path):
    other = tmp_path / "other.json"
    write_profile(with_slow_link(dx.load_profile(saved).result, 4.0), other)
    assert run("report", saved, "--compare", other).code == 0
    found = run("report", saved, "--compare", other, "--json").json()
    assert found["slower"] == ["link tcp://10.0.0.1 -> tcp://10.0.0.2"]
    (link,) = [each for each in found["changes"] if each["kind"] == "link"]
    assert link["is_slower"]
    assert link["change"] == pytest.approx(-0.75)
    assert run("report", other, "--compare", saved, "--json").json()["slower"] == []


def test_a_file_that_is_no_profile_is_bad_input(run, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    result = run("report", tmp_path / "run.json", "--json")
    assert result.code == 2
    assert result.error()["fields"]["option"] == "path"


@pytest.mark.cluster
def test_predict_writes_a_profile_of_the_job(run, model, rows, scheduler, tmp_path):
    target = tmp_path / "run.json"
    arguments = ["--outputs", "y", "--scheduler", scheduler, "--profile", target]
    result = run("predict", model, rows, tmp_path / "y.npy", *arguments)
    assert result.code == 0, result.err
    result = dx.load_profile(target).result
    written = np.load(tmp_path / "y.npy")
    assert max(sum(t.rows or 0 for t in result.tasks if t.label == s.label) for s in result.stages)
    assert len(written) <= sum(t.rows or 0 for t in result.tasks)
    assert {phase.name for task in result.tasks for phase in task.phases} >= {"run", "write"}
    assert json.loads(target.read_text())["traceEvents"]


@pytest.mark.parametrize("name", ["run.txt", "missing/run.json"])
def test_a_wrong_target_is_told_before_work_starts(run, model, rows, tmp_path, name):
    out = tmp_path / "y.npy"
    result = run("predict", model, rows, out, "--profile", tmp_path / name, "--json")
    assert result.code == 2
    assert result.error()["fields"]["option"] == "profile"
    assert not out.exists()
