"""Fixtures of all tests: a temporary store, empty caches, and the fetched models."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import dask.config
import pytest
from hypothesis import settings

from dask_onnx.runtime import tuning
from dask_onnx.runtime.session_cache import SESSION_CACHE

# The time of an example depends on the machine more than on the code. Examples are the same in each
# run, so that a test fails because of a change; `--hypothesis-profile explore` looks for new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")

ASSETS = Path(os.environ.get("DASK_ONNX_ASSETS", Path(__file__).parents[1] / ".cache" / "assets"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Distribute tests by file; those of all files that use clusters run in one process.

    Clusters side by side would wait for each other, and share the default client and the ports.
    """
    from xdist.scheduler import LoadScopeScheduling

    @functools.cache
    def scope_of(file):
        text = (config.rootpath / file).read_text()
        is_clustered = any(word in text for word in ("mark.cluster", "Cluster(", "Client("))
        return "clusters" if is_clustered else file

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return scope_of(nodeid.partition("::")[0])

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def store_directory(tmp_path_factory):
    """Replace the user's store by a temporary folder; workers read it from the environment."""
    folder = str(tmp_path_factory.mktemp("store"))
    # Plans must not depend on the machine that tests run on, nor on the test that ran before.
    options = {
        "onnx.store.directory": folder,
        "onnx.plan.calibrate": False,
        # Each test of a command has a model of its own, which would be tried in a subprocess first.
        "onnx.untrusted.command-line": False,
        # On Python 3.11 Dask's statistical profiler may end the process while it looks at frames of
        # other threads; clusters of threads would take the tests with them.
        "distributed.worker.profile.enabled": False,
    }
    # As environment variables for commands and workers.
    variables = {_variable(option): str(value) for option, value in options.items()}
    os.environ.update(variables)
    with dask.config.set(options):
        yield folder
    for name in variables:
        del os.environ[name]


def _variable(option):
    """Return the environment variable of an option: DASK_ONNX__PLAN__CALIBRATE."""
    return f"DASK_{option.upper().replace('.', '__').replace('-', '_')}"


@pytest.fixture(autouse=True)
def no_sessions_left():
    yield
    SESSION_CACHE.clear()
    tuning.clear_tunings()


@pytest.fixture(scope="session")
def asset():
    """Return a function from the name of a fetched model or image to its path; fail if missing."""

    def asset(name: str) -> str:
        path = (ASSETS / name).absolute()
        assert path.is_file(), f"{path} is missing: run `make assets`"
        return str(path)

    return asset
