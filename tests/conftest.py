"""What every test stands on: a store of its own, and the fetched models."""

from __future__ import annotations

import os
from pathlib import Path

import dask.config
import pytest
from hypothesis import settings

from dask_onnx.runtime import tuning as tune
from dask_onnx.runtime.session import CACHE

# How long an example takes says more of the machine than of the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

ASSETS = Path(os.environ.get("DASK_ONNX_ASSETS", Path(__file__).parents[1] / ".cache" / "assets"))


@pytest.fixture(scope="session", autouse=True)
def store_directory(tmp_path_factory):
    """No test touches the user's own store; worker processes learn it from the environment."""
    folder = str(tmp_path_factory.mktemp("store"))
    os.environ["DASK_ONNX__STORE__DIRECTORY"] = folder
    os.environ["DASK_ONNX__PLAN__CALIBRATE"] = "False"
    # Plans must not depend on the machine that tests run on, nor on the test that ran before.
    with dask.config.set({"onnx.store.directory": folder, "onnx.plan.calibrate": False}):
        yield folder
    del os.environ["DASK_ONNX__STORE__DIRECTORY"]
    del os.environ["DASK_ONNX__PLAN__CALIBRATE"]


@pytest.fixture(autouse=True)
def no_sessions_left():
    yield
    CACHE.clear()
    tune.forget()


@pytest.fixture(scope="session")
def asset():
    """The path of a fetched model or picture; a missing one is a failure."""

    def asset(name: str) -> str:
        path = (ASSETS / name).absolute()
        assert path.is_file(), f"{path} is missing: run `make assets`"
        return str(path)

    return asset
