"""Options of jobs: values of other types are refused before the model is read."""

from __future__ import annotations

import numpy as np
import pytest

import dask_onnx as dx
from dask_onnx.core.errors import InputError
from dask_onnx.jobs.job_cluster import JobCluster
from dask_onnx.jobs.option_checks import check_count, counts_of, names_of


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("workers", 0),
        ("workers", -1),
        ("workers", "a"),
        ("threads", 0),
        ("worker_memory_limit", -5),
        ("scheduler", 5),
        ("block_rows", 0),
        ("block_rows", 2.5),
        ("block_rows", True),
        ("batch_size", "abc"),
        ("batch_size", -2),
        ("batch_size", 2.5),
        ("retries", -1),
        ("n_stages", 0),
        ("outputs", 5),
        ("outputs", ["y", 5]),
        ("image", "yolo"),
        ("dtype", "float32"),
        ("na_values", 5),
        ("na_values", "x"),
        ("append", 5),
        ("length_buckets", 16),
        ("length_buckets", ["a"]),
        ("pooling", "foo"),
        ("normalize", "yes"),
        ("encoding", 5),
        ("delimiter", 5),
        ("decimal", 5),
        ("text", 5),
        ("quarantine", 5),
        ("draw", ""),
    ],
)
def test_values_that_an_option_does_not_take_name_it(option, value):
    with pytest.raises(InputError) as raised:
        dx.predict_files("a model that is not read", "x.csv", "y.csv", **{option: value})
    assert raised.value.option == option and raised.value.next_step


@pytest.mark.parametrize("path", ["", "  ", b"x.npy", None, 5, np.zeros(3)])
@pytest.mark.parametrize("option", ["input", "output"])
def test_paths_are_texts(option, path):
    given = {"input": "x.npy", "output": "y.npy", option: path}
    with pytest.raises(InputError) as raised:
        dx.predict_files("a model that is not read", **given)
    assert raised.value.option == option


@pytest.mark.parametrize("address", ["localhost", "http://localhost:8787", "a b:1", "/tmp/file"])
def test_what_is_no_address_of_a_scheduler_is_refused_at_once(address):
    with pytest.raises(InputError) as raised, JobCluster(address).connect():
        pass
    assert raised.value.option == "scheduler" and raised.value.reason == address


def test_numbers_of_numpy_and_single_names_are_accepted():
    check_count(np.int64(3), "workers")
    check_count(0, "retries", least=0)
    assert counts_of([16, np.int32(32)], "length_buckets") == (16, 32)
    assert names_of("y", "outputs") == ["y"] and names_of((), "outputs") is None
