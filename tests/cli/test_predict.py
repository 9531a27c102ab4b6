"""``dask-onnx predict`` on arrays and pictures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
import zarr
from PIL import Image
from pyarrow import parquet

pytestmark = pytest.mark.cluster

HERE = Path(__file__).parent


def expected(model, x):
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def test_npy_to_npy_on_an_existing_cluster(run, model, rows, scheduler, tmp_path):
    out = tmp_path / "y.npy"
    result = run("predict", model, rows, out, "--outputs", "y", "--scheduler", scheduler)
    assert result.code == 0, result.err
    assert "25 rows in" in result.out
    assert "2 workers" in result.out
    np.testing.assert_array_equal(np.load(out), expected(model, np.load(rows))[0])


def test_shards_are_runs_of_their_own(run, model, rows, scheduler, tmp_path):
    out, found = tmp_path / "y.npy", []
    for i in range(2):
        arguments = ["--outputs", "y", "--shard", i, "--of", 2, "--scheduler", scheduler]
        result = run("predict", model, rows, out, *arguments, "--block-rows", 5)
        assert result.code == 0, result.err
        found.append(np.load(tmp_path / f"y.shard-000{i}-of-0002.npy"))
    np.testing.assert_array_equal(np.concatenate(found), expected(model, np.load(rows))[0])
    result = run("predict", model, rows, out, "--shard", 2, "--of", 2, "--json")
    assert result.code == 2 and result.error()["fields"]["option"] == "shard"


@pytest.mark.parametrize("strategy", [["whole"], ["per_node"], ["fused", "--n-stages", "2"]])
def test_every_strategy_and_batch_size_gives_the_same_result(
    run, model, rows, scheduler, tmp_path, strategy
):
    out = tmp_path / "y.zarr"
    arguments = ["--strategy", *strategy, "--batch-size", "2", "--scheduler", scheduler, "--json"]
    result = run("predict", model, rows, out, *arguments)
    assert result.code == 0, result.out
    assert result.json()["batch_size"] == 2
    group = zarr.open_group(str(out), mode="r")
    for name, value in zip(("y", "s"), expected(model, np.load(rows)), strict=True):
        np.testing.assert_allclose(group[name][:], value, rtol=1e-6)
    assert (out / "_SUCCESS").exists()


def test_pre_and_post_are_imported_on_the_workers(run, model, scheduler, tmp_path):
    x = np.arange(40, dtype=np.int64).reshape(10, 4)
    np.savez_compressed(tmp_path / "x.npz", x)
    out = tmp_path / "y.parquet"
    arguments = ["--pre", "steps:to_float", "--post", "steps:argmax", "--outputs", "y"]
    result = run("predict", model, tmp_path / "x.npz", out, *arguments, "--scheduler", scheduler)
    assert result.code == 0, result.err
    y = expected(model, x.astype(np.float32))[0]
    table = parquet.read_table(out).to_pydict()
    assert table["best"] == y.argmax(axis=1).tolist()
    np.testing.assert_array_equal(table["score"], y.max(axis=1))


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["missing.npy", "y.npy"], "path"),
        (["x64.npy", "y.npy"], None),
        (["flat.npy", "y.npy"], None),
        (["wide.npy", "y.npy"], None),
        (["x.npy", "y.npy"], "outputs"),
        (["x.npy", "y.npy", "--outputs", "z"], None),
        (["x.npy", "y.txt"], "path"),
        (["x.npy", "y.npy", "--pre", "steps:nothing"], "pre"),
        (["x.npy", "y.npy", "--pre", "nowhere:f"], "pre"),
        (["x.npy", "y.npy", "--pre", "steps"], "pre"),
        (["x.npy", "y.npy", "--outputs", "y", "--post", "steps:argmax"], "outputs"),
        (["x.npy", "y.npy", "--workers", "2"], "scheduler"),
        (["x.npy", "y.npy", "--rows", "x"], "rows"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    run, model, rows, scheduler, tmp_path, monkeypatch, arguments, option
):
    np.save(tmp_path / "x64.npy", np.zeros((3, 4)))
    np.save(tmp_path / "flat.npy", np.zeros(3, np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((3, 5), np.float32))
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    result = run("predict", model, *arguments, "--scheduler", scheduler, "--json")
    assert result.code == 2, result.err
    error = result.error()
    assert error["kind"] == "InputError" and error["next_step"]
    assert option is None or error["fields"]["option"] == option
    assert set(tmp_path.iterdir()) == before


def test_an_error_is_a_cause_and_a_next_step(run, model, rows, scheduler, tmp_path):
    result = run("predict", model, rows, tmp_path / "y.npy", "--scheduler", scheduler)
    assert result.code == 2
    dashboard, cause, next_step = result.err.splitlines()
    assert dashboard.startswith("dashboard: ") and cause.startswith("error: --outputs: ")
    assert next_step.strip()


def test_a_missing_scheduler_is_reported_within_ten_seconds(run, model, rows, tmp_path):
    began = time.monotonic()
    arguments = ["--outputs", "y", "--scheduler", "tcp://127.0.0.1:9"]
    result = run("predict", model, rows, tmp_path / "y.npy", *arguments)
    assert result.code == 2
    assert "cannot be reached" in result.err
    assert time.monotonic() - began < 10


def test_a_failure_in_the_middle_leaves_what_can_be_resumed(run, model, rows, scheduler, tmp_path):
    arguments = ["--pre", "steps:fail_late", "--outputs", "y", "--batch-size", "2"]
    arguments += ["--retries", "0", "--scheduler", scheduler]
    result = run("predict", model, rows, tmp_path / "y.npy", *arguments)
    assert result.code == 1
    assert "a row that nobody expected" in result.err
    names = {path.name for path in tmp_path.iterdir()} - {model.name, rows.name}
    # Workers may run the block that fails before any other is complete.
    is_kept = "--resume" in result.err and "--overwrite" in result.err
    assert ".y.npy.resume" in names and len(names) == 2 if is_kept else names == set()
    assert run("status", tmp_path / "y.npy").code == (4 if is_kept else 2)


def test_missing_rows_are_an_error(run, model, rows, scheduler, tmp_path):
    arguments = ["--pre", "steps:halve_rows", "--outputs", "y", "--scheduler", scheduler]
    result = run("predict", model, rows, tmp_path / "y.npy", *arguments)
    assert result.code == 2
    assert result.err.splitlines()[-2].startswith("error: --pre: ")


def test_an_existing_output_is_kept(run, model, rows, scheduler, tmp_path):
    out = tmp_path / "y.npy"
    out.write_bytes(b"precious")
    result = run("predict", model, rows, out, "--outputs", "y", "--scheduler", scheduler)
    assert result.code == 2
    assert out.read_bytes() == b"precious"
    arguments = ["--outputs", "y", "--scheduler", scheduler, "--overwrite"]
    assert run("predict", model, rows, out, *arguments).code == 0
    assert np.load(out).shape == (25, 3)


@pytest.mark.real
def test_pictures_through_a_real_detector_on_a_cluster_of_its_own(asset, tmp_path):
    page = Image.open(asset("page.png")).convert("RGB")
    for i in range(6):
        page.crop((32 * i, 0, 32 * i + 160, 160)).save(tmp_path / f"{i}.png")
    notebooks = HERE.parents[1] / "notebooks"
    command = [sys.executable, "-m", "dask_onnx", "predict", asset("det.onnx")]
    command += [f"{tmp_path}/*.png", tmp_path / "maps.npy", "--pre", "ocr_steps:prepare"]
    done = subprocess.run(
        [*map(str, command), "--workers", "2"], cwd=notebooks, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    pixels = np.stack([np.asarray(Image.open(tmp_path / f"{i}.png")) for i in range(6)])
    x = np.ascontiguousarray(((pixels.astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2))
    session = onnxruntime.InferenceSession(asset("det.onnx"), providers=["CPUExecutionProvider"])
    maps = np.load(tmp_path / "maps.npy")
    np.testing.assert_allclose(maps, session.run(None, {"x": x})[0], atol=1e-6)
    assert (maps > 0.3).any()


@pytest.mark.real
def test_ctrl_c_stops_all_processes_and_leaves_no_result_under_its_name(asset, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4000, 3, 160, 160), np.float16))
    (tmp_path / "widen.py").write_text("def widen(block):\n    return block.astype('float32')\n")
    command = [sys.executable, "-m", "dask_onnx", "predict", str(asset("det.onnx")), "x.npy"]
    command += ["y.npy", "--pre", "widen:widen", "--workers", "2"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets commands in the background ignore Ctrl-C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if partial := list(tmp_path.glob(".y.npy.*.partial")):
            break
        time.sleep(0.1)
    assert partial, process.communicate()[1]
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    # A terminal sends it to the client and to all processes that it started.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error: interrupted" in err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    names = {p.name for p in tmp_path.iterdir()} - {"__pycache__", "x.npy", "widen.py"}
    # Blocks that were complete are kept, with the record of the run.
    assert names == set() or ("--resume" in err and ".y.npy.resume" in names and len(names) == 2)


def test_help_and_version_need_no_heavy_import():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom dask_onnx.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "print([m for m in ('onnx', 'onnxruntime', 'distributed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_dask_onnx_is_a_command_of_dask(model):
    done = subprocess.run(
        [sys.executable, "-m", "dask", "onnx", "inspect", str(model)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "tiny, 3 nodes" in done.stdout
