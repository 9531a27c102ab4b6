from __future__ import annotations

import random
import subprocess
import sys
from types import SimpleNamespace

import dask.config
import numpy as np
import pytest
from dask.sizeof import sizeof
from distributed.protocol import deserialize, serialize
from distributed.protocol.compression import maybe_compress

from dask_onnx.runtime import transfer
from dask_onnx.runtime.batching import MicroBatches
from dask_onnx.runtime.transfer import StageOutput

RELU = np.maximum(np.random.default_rng(0).standard_normal((4, 64, 32, 32)), 0).astype("f4")
APART = {
    "sender": {"address": "tcp://10.0.0.1:1"},
    "recipient": {"address": "tcp://10.0.0.2:2"},
    "compression": None,
}
TOGETHER = {**APART, "recipient": {"address": "tcp://10.0.0.1:3"}}


def encodings(value, context):
    header, frames = serialize(StageOutput(value), context=context)
    back = deserialize(header, frames).value
    return [encoding for encoding, *_ in header["sub-header"]["pieces"]], back, header, frames


@pytest.fixture
def slow_link():
    # So slow that sizes decide between encodings, and not how busy the machine is.
    with dask.config.set({"onnx.transfer.bandwidth": "500kB"}):
        yield


def test_values_between_hosts_are_encoded(slow_link):
    found, back, _, frames = encodings(RELU, APART)
    assert found == ["zeros"]
    assert sum(memoryview(f).nbytes for f in frames) < 0.6 * RELU.nbytes
    np.testing.assert_array_equal(back, RELU)


def test_dask_does_not_compress_bytes_for_a_fast_link():
    random.seed(0)  # Dask looks at bytes of random places, and this tensor is a close case
    with dask.config.set({"onnx.transfer.bandwidth": "20GB"}):
        assert encodings(RELU, APART)[0] == ["raw"]
        found, back, _, frames = encodings(RELU, {**APART, "compression": "lz4"})
    assert found == ["masked"]
    assert maybe_compress(frames[0], compression="lz4")[0] is None
    assert maybe_compress(RELU.data, compression="lz4")[0] == "lz4"
    np.testing.assert_array_equal(back, RELU)


@pytest.mark.parametrize("context", [None, TOGETHER], ids=["to disk", "within a host"])
def test_values_to_disk_or_within_a_host_are_not_encoded(slow_link, context):
    found, back, _, frames = encodings(RELU, context)
    assert found == ["raw"]
    assert np.shares_memory(np.frombuffer(frames[0], "f4"), RELU)
    np.testing.assert_array_equal(back, RELU)


def test_encoding_can_be_switched_off(slow_link):
    with dask.config.set({"onnx.transfer.pack": False}):
        assert encodings(RELU, APART)[0] == ["raw"]


def test_micro_batches_are_encoded_one_by_one(slow_link):
    split = MicroBatches((RELU[:2], RELU[2:]), 4, False)
    found, back, _, _ = encodings(split, APART)
    assert found == ["zeros", "zeros"]
    assert back.rows == 4 and not back.is_padded
    np.testing.assert_array_equal(np.concatenate(back.pieces), RELU)


@pytest.mark.parametrize(
    "value", [np.array(["a", "b"], object), [{"a": 1.0}, {"a": 2.0}]], ids=["strings", "maps"]
)
def test_values_that_are_no_tensors_are_pickled(slow_link, value):
    header, frames = serialize(StageOutput(value), context=APART)
    assert list(deserialize(header, frames).value) == list(value)


def test_dask_sees_the_bytes_of_the_value():
    assert sizeof(StageOutput(RELU)) >= RELU.nbytes
    assert sizeof(StageOutput(MicroBatches((RELU, RELU), 8, False))) >= 2 * RELU.nbytes


def entry(compressed, duration, who="tcp://10.0.0.2:9", start=100.0):
    return {
        "who": who,
        "compressed": compressed,
        "duration": duration,
        "start": start,
        "stop": start + duration,
    }


def rate_of(monkeypatch, log, packing=()):
    worker = SimpleNamespace(transfer_outgoing_log=log)
    monkeypatch.setattr(transfer, "worker_of_process", {"tcp://10.0.0.1:9": worker}.get)
    transfer._packings.clear()
    transfer._packings.put("10.0.0.2", tuple(packing))
    return transfer._measured_rate("tcp://10.0.0.1:9", "10.0.0.2")


def test_the_rate_of_a_link_comes_from_its_transfers(monkeypatch):
    log = [entry(10_000_000, 1.0), entry(100, 0.5), entry(10**9, 1.0, "tcp://10.0.0.3:9")]
    assert rate_of(monkeypatch, log) == 10_000_000


def test_time_of_encoding_is_not_time_of_the_link(monkeypatch):
    assert rate_of(monkeypatch, [entry(10_000_000, 1.0)], [(100.5, 0.5)]) == 20_000_000


def test_an_unknown_link_has_the_rate_that_dask_assumes(monkeypatch):
    assert rate_of(monkeypatch, []) == 100_000_000


def test_importing_leaves_dasks_own_serializer_of_arrays():
    code = (
        "import dask_onnx.runtime.kernel, numpy as np\n"
        "from distributed.protocol import dask_serialize\n"
        "print(dask_serialize.dispatch(np.ndarray).__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["distributed.protocol.numpy"], done.stderr
