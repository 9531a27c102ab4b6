"""The examples of docstrings run, with the files and objects that a reader has in mind.

An example that states its result must give it; one that states none has to run.
"""

from __future__ import annotations

import doctest
import importlib
import io
import logging
import pkgutil
import shutil

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import docstring_examples as prepared
import numpy as np
import onnx
import pandas as pd
import pytest
from distributed import Client

import dask_onnx
import dask_onnx as dx


class _StatedResults(doctest.OutputChecker):
    """Accept what an example prints that states no result."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def examples():
    """Return the docstrings of the package that have examples, by name."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for info in pkgutil.walk_packages(dask_onnx.__path__, "dask_onnx."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for test in finder.find(module, info.name, module=module):
            if test.examples:
                found[test.name.removeprefix("dask_onnx.")] = test
    return found


EXAMPLES = examples()


@pytest.fixture(scope="module")
def files(tmp_path_factory, asset):
    """A folder with the files that examples read."""
    folder = tmp_path_factory.mktemp("docstrings")
    prepared.write_files(folder)
    shutil.copy(asset("minilm_tokenizer.json"), folder / "encoder_tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def client():
    with Client(
        processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None
    ) as client:
        yield client


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_of_a_docstring_run(name, files, client, tmp_path, monkeypatch):
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    test = EXAMPLES[name]
    common = {"dx": dx, "np": np, "da": da, "db": db, "dd": dd, "pd": pd, "dask": dask}
    common |= {"onnx": onnx, "logging": logging, "client": client, "Client": Client}
    test.globs = {**test.globs, **common, **prepared.names_for(name, client)}
    printed = io.StringIO()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(_StatedResults(), verbose=False, optionflags=flags)
    result = runner.run(test, out=printed.write, clear_globs=False)
    assert result.failed == 0, printed.getvalue()
    assert any(doctest.SKIP not in example.options for example in test.examples)


def test_examples_are_found():
    assert len(EXAMPLES) > 50
