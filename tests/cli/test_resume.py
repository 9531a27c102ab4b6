"""A command line that is killed with its processes goes on, and `status` tells how far it is."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest


def digests(target):
    paths = sorted(target.rglob("*")) if target.is_dir() else [target]
    return {
        path.relative_to(target): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }


def start(arguments, folder):
    return subprocess.Popen(
        [sys.executable, "-m", "dask_onnx", "predict", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_everything(process):
    """Kill a client, and its scheduler and workers, at once."""
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        try:
            os.kill(each.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait(timeout=30)


def wait_for_blocks(target, process, count, run):
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None and time.monotonic() < deadline
        if target.with_name(f".{target.name}.resume").exists():
            result = run("status", target, "--json")
            if result.code == 3 and (result.json()["blocks"] or 0) >= count:
                return result.json()
        time.sleep(0.05)


@pytest.mark.cluster
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_run_that_was_killed_with_everything_goes_on_on_another_cluster(
    model, run, scheduler, tmp_path, suffix
):
    target, whole = tmp_path / f"y{suffix}", tmp_path / f"whole{suffix}"
    rows = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    common = ["--outputs", "y", "--batch-size", "4"]
    (tmp_path / "hold").touch()
    if suffix == ".npy":
        source = tmp_path / "x.npy"
        np.save(source, rows)
        common += ["--block-rows", "4", "--pre", "steps:hold"]
    else:
        source = tmp_path / "x"
        source.mkdir()
        frame = pd.DataFrame(rows, columns=list("abcd"))
        for part in range(200):
            frame[part : part + 1].to_parquet(source / f"{part:03d}.parquet")
    process = start([model, source, target, *common, "--workers", "1"], tmp_path)
    try:
        seen = wait_for_blocks(target, process, 5, run)
    finally:
        kill_everything(process)
    total = seen["all_blocks"]
    assert seen["holder"]["pid"] == process.pid and total in (50, 200)
    ended = run("status", target, "--json")
    assert ended.code == 4 and seen["blocks"] <= ended.json()["blocks"] < total
    assert ended.json()["holder"] is None and not target.exists()
    blocks = ended.json()["blocks"]
    assert str(blocks) in run("status", target).out
    common += ["--scheduler", scheduler]
    refused = run("predict", model, source, target, *common)
    assert refused.code == 2 and "--resume" in refused.err and "--overwrite" in refused.err
    resumed = run("predict", model, source, target, *common, "--resume", "--json")
    assert resumed.code == 0 and resumed.json()["resumed_blocks"] == blocks
    assert run("predict", model, source, whole, *common).code == 0
    assert digests(target) == digests(whole)
    done = run("status", target, "--json")
    assert done.code == 0 and done.json()["state"] == "complete"
    assert (done.json()["blocks"], done.json()["rows"], done.json()["rows_left"]) == (total, 200, 0)
    again = run("predict", model, source, target, *common, "--resume", "--json")
    assert again.code == 0 and again.json()["was_complete"] and again.json()["rows"] == 200
    assert (
        "complete, 200 rows; nothing to do"
        in run("predict", model, source, target, *common, "--resume").out
    )
    differing = run("predict", model, source, target, *common, "--retries", "0", "--resume")
    assert differing.code == 0  # repetitions do not change results
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_status_of_what_no_run_has_written_says_so(run, tmp_path):
    np.save(tmp_path / "y.npy", np.zeros(3))
    (tmp_path / "y.parquet").mkdir()
    (tmp_path / "y.parquet" / "notes.txt").write_text("mine")
    for name in ("y.npy", "y.parquet"):
        result = run("status", tmp_path / name, "--json")
        assert result.code == 5 and result.json()["state"] == "foreign"
        assert result.json()["reason"] and result.json()["rows"] is None


def test_the_status_of_nothing_is_an_error(run, tmp_path):
    result = run("status", tmp_path / "y.npy", "--json")
    assert result.code == 2 and result.error()["fields"]["option"] == "path"
