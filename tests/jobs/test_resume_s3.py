"""Runs that write to an S3 server go on where they were, also where a run replaces an output."""

from __future__ import annotations

import gc

import fsspec
import fsspec.config
import numpy as np
import pytest
from job_steps import Interrupted, digests, interrupting, predict

from dask_onnx.jobs.run_status import run_status

pytestmark = [
    pytest.mark.slow,
    # The client of S3 closes its sockets with the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def bucket():
    """Return the URL of a bucket of a server in this process."""
    from moto.server import ThreadedMotoServer  # only slow tests need it

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    fsspec.config.conf["s3"] = {
        "endpoint_url": f"http://{host}:{port}",
        "key": "user",
        "secret": "secret",
    }
    fsspec.filesystem("s3").mkdir("resume")
    yield "s3://resume"
    del fsspec.config.conf["s3"]
    # Each thread has a client of its own.
    kind = fsspec.get_filesystem_class("s3")
    for system in list(kind._cache.values()):
        kind.close_session(system.loop, system._s3)
    kind.clear_instance_cache()
    del system
    gc.collect()
    server.stop()


@pytest.mark.parametrize("suffix", [".zarr", ".parquet"])
def test_an_output_in_a_bucket_goes_on_and_is_replaced_when_complete(
    one_thread, bucket, tmp_path, suffix
):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((60, 8), np.float32))
    source, whole, target = tmp_path / "x.npy", f"{bucket}/whole{suffix}", f"{bucket}/y{suffix}"
    predict(source, whole, one_thread)
    for options in ({}, {"overwrite": True}):
        with pytest.raises(Interrupted):
            predict(source, target, one_thread, progress=interrupting(after=20), **options)
        status = run_status(target)
        assert (status.state, status.all_blocks) == ("ended", 12) and status.blocks >= 4
        found = predict(source, target, one_thread, resume=True)
        assert found.resumed_blocks >= status.blocks and found.rows == 60
        assert digests(target) == digests(whole)
        assert predict(source, target, one_thread, resume=True).was_complete
        assert run_status(target).state == "complete"
    names = {path.rpartition("/")[2] for path in fsspec.filesystem("s3").ls("resume")}
    assert {f"y{suffix}", f"whole{suffix}"} <= names
    assert not [name for name in names if name.endswith((".resume", ".lock", ".partial"))]
