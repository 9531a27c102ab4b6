"""Mistakes of the first ten minutes: each is told before anything is started or written."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dask_onnx.jobs.job_cluster import JobCluster


@pytest.fixture
def folder(tmp_path, model, rows, monkeypatch):
    """Folder with a model `tiny.onnx`, rows for it in several formats, and other files."""
    table = pd.DataFrame(np.arange(12.0).reshape(3, 4), columns=list("abcd"))
    table.to_csv(tmp_path / "x.csv", index=False)
    table.to_csv(tmp_path / "bare.csv", index=False, header=False)
    table.to_csv(tmp_path / "semicolons.csv", index=False, sep=";")
    table.assign(b=["1", "six", "2"]).to_csv(tmp_path / "words.csv", index=False)
    table.to_parquet(tmp_path / "x.parquet")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "damaged.parquet").write_bytes(b"hello")
    (tmp_path / "notes.txt").write_text("hi")
    for name in ("empty", "tables", "pictures", "model"):
        (tmp_path / name).mkdir()
    table.to_csv(tmp_path / "tables" / "x.csv", index=False)
    Image.new("L", (4, 4)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "model" / "tiny.onnx").write_bytes(model.read_bytes())
    monkeypatch.chdir(tmp_path)

    def started(*_):
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(JobCluster, "_local_cluster", started)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["missing.onnx", "x.npy", "y.npy"], None),
        (["model", "x.npy", "y.npy"], None),
        (["x.npy", "x.npy", "y.npy"], None),
        (["tiny.onnx", "missing.npy", "y.npy"], "path"),
        (["tiny.onnx", "missing.csv", "y.csv"], "path"),
        (["tiny.onnx", "missing*.csv", "y.csv"], "path"),
        (["tiny.onnx", "missing*.png", "y.npy"], "path"),
        (["tiny.onnx", "missing/a.png", "y.npy"], "path"),
        (["tiny.onnx", "*.npy", "y.npy"], "path"),
        (["tiny.onnx", "notes.txt", "y.npy"], "path"),
        (["tiny.onnx", "empty", "y.npy"], "path"),
        (["tiny.onnx", "", "y.npy"], "input"),
        (["tiny.onnx", "x.npy", ""], "output"),
        (["tiny.onnx", "x.npy", "y.txt"], "path"),
        (["tiny.onnx", "x.npy", "y"], "path"),
        (["tiny.onnx", "x.npy", "y.csv"], "path"),
        (["tiny.onnx", "x.csv", "y.npy"], "path"),
        (["tiny.onnx", "x.npy", "missing/y.npy"], "path"),
        (["tiny.onnx", "x.npy", "x.npy"], "overwrite"),
        (["tiny.onnx", "x.npy", "x.npy", "--overwrite"], "output"),
        (["tiny.onnx", "x.csv", "x.csv", "--overwrite"], "output"),
        (["tiny.onnx", "tables", "tables/y.csv"], "output"),
        (["tiny.onnx", "x.csv", "y.csv", "--quarantine", "y.csv"], "quarantine"),
        (["tiny.onnx", "empty.csv", "y.csv"], "path"),
        (["tiny.onnx", "damaged.parquet", "y.csv"], "path"),
        (["tiny.onnx", "bare.csv", "y.csv"], "path"),
        (["tiny.onnx", "semicolons.csv", "y.csv"], "delimiter"),
        (["tiny.onnx", "words.csv", "y.csv"], "columns"),
        (["tiny.onnx", "x.csv", "y.csv", "--columns", "a,b,c"], "columns"),
        (["tiny.onnx", "x.parquet", "y.csv", "--columns", "a,b,c,e"], "columns"),
        (["tiny.onnx", "x.csv", "y.csv", "--dtype", "a=float46"], "dtype"),
        (["tiny.onnx", "pictures", "y.npy", "--pre", "json:dumps"], "path"),
        (["tiny.onnx", "x.npy", "y.npy", "--preset", "yolo"], "preset"),
        (["tiny.onnx", "x.npy", "y.npy", "--outputs", "y", "--scheduler", "here"], "scheduler"),
    ],
)
def test_mistakes_are_told_before_a_cluster_is_started(run, folder, arguments, option):
    before = {path: path.is_dir() or path.read_bytes() for path in folder.rglob("*")}
    result = run("predict", *arguments, "--json")
    assert result.code == 2, result.err
    error = result.error()
    assert error["kind"] in ("InputError", "ModelError") and error["next_step"]
    assert error["fields"].get("option") == option or option is None
    assert {path: path.is_dir() or path.read_bytes() for path in folder.rglob("*")} == before


def test_next_steps_are_in_options_of_the_command(run, folder):
    for arguments in (
        ["bare.csv", "y.csv"],
        ["words.csv", "y.csv"],
        ["x.csv", "y.csv", "--columns", "a,b,c"],
    ):
        step = run("predict", "tiny.onnx", *arguments, "--json").error()["next_step"]
        assert "--columns" in step and "columns=" not in step
