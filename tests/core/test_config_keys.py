"""Misspelt keys of the configuration and environment variables."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dask_onnx.core.config import DEFAULTS
from dask_onnx.core.config_keys import unknown_keys, variable_of


def names(config=None, environment=None):
    return [key.name for key in unknown_keys(DEFAULTS, config or {}, environment or {})]


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("DASK_ONNX__STORE__DIRECTROY", "DASK_ONNX__STORE__DIRECTORY"),
        ("DASK_ONNX__STORE_DIRECTORY", "DASK_ONNX__STORE__DIRECTORY"),
        ("DASK_ONNX_STORE_DIRECTORY", "DASK_ONNX__STORE__DIRECTORY"),
        ("DASK_ONNX_RETRIES", "DASK_ONNX__RETRIES"),
        ("ONNX__RETRIES", "DASK_ONNX__RETRIES"),
        ("DASK_ONNX__COLOUR__OF_THE_SKY", None),
    ],
)
def test_a_misspelt_variable_is_told_with_the_right_one(variable, near):
    (found,) = unknown_keys(DEFAULTS, {}, {variable: "x"})
    assert found.name == variable
    assert (found.near[0] if found.near else None) == near


def test_variables_and_keys_that_exist_are_not_told():
    environment = {variable_of(f"onnx.{key}"): "1" for key in ("retries", "store.max-bytes")}
    assert names({"onnx": DEFAULTS}, environment) == []
    assert names({"onnx": {"store": {"max_bytes": 5}}}) == []
    assert names({}, {"DASK_ONNX_ASSETS": "a program of its own", "DASK_ARRAY__X": "1"}) == []


def test_a_misspelt_key_is_told_once():
    config = {"onnx": {"store": {"directroy": "/x"}, "retires": 2}}
    assert names(config) == ["onnx.store.directroy", "onnx.retires"]
    variable = {"DASK_ONNX__STORE__DIRECTROY": "/x"}
    assert names({"onnx": {"store": {"directroy": "/x"}}}, variable) == [*variable]


def test_the_command_line_tells_and_removes_nothing(tmp_path):
    environment = {**os.environ, "DASK_ONNX__STORE__DIRECTROY": str(tmp_path)}
    command = [sys.executable, "-m", "dask_onnx", "store", "list"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: ") and "DASK_ONNX__STORE__DIRECTORY" in done.stderr
    assert "UserWarning" not in done.stderr
