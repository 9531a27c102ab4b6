"""Configuration keys: defaults, environment variables and the old namespace."""

from __future__ import annotations

import os
import subprocess
import sys

import dask.config
import pytest

from dask_onnx.core import config


def printed(code: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return (done.stdout + done.stderr).split("\n")


def test_defaults_outlive_a_configuration_context_around_the_import():
    code = (
        "import dask, dask_onnx\n"
        "with dask.config.set({'onnx.retries': 5}):\n"
        "    from dask_onnx.core import config\n"
        "    print(config.get('retries'))\n"
        "print(config.get('retries'), config.get('session.shared-pool'))\n"
    )
    assert printed(code)[:2] == ["5", "3 False"]


READ = "from dask_onnx.core import config; print(config.get('store.directory'))"


def test_an_environment_variable_sets_a_key():
    assert printed(READ, DASK_ONNX__STORE__DIRECTORY="/some/folder")[0] == "/some/folder"


def test_the_old_namespace_is_read_with_a_warning():
    environment = {**os.environ}
    environment.pop("DASK_ONNX__STORE__DIRECTORY", None)
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", READ],
        capture_output=True,
        text=True,
        env={**environment, "DASK_DASK_ONNX__STORE__DIRECTORY": "/old"},
    )
    assert done.stdout.split() == ["/old"]
    assert "FutureWarning" in done.stderr and "onnx.store.directory" in done.stderr


def test_setting_a_key_by_its_old_name_warns_and_works():
    with (
        pytest.warns(FutureWarning, match=r"onnx\.retries"),
        dask.config.set({"dask_onnx.retries": 7}),
    ):
        assert config.get("retries") == 7


def test_an_unknown_key_is_an_error():
    with pytest.raises(KeyError):
        config.get("session.no-such-thing")
