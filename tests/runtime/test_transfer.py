from __future__ import annotations

from types import SimpleNamespace

import dask.config
import numpy as np
import pytest
from dask.sizeof import sizeof
from distributed.protocol import deserialize, serialize
from distributed.protocol.compression import maybe_compress

from dask_onnx.runtime import transfer
from dask_onnx.runtime.batching import Runs
from dask_onnx.runtime.transfer import Travelling

RELU = np.maximum(np.random.default_rng(0).standard_normal((4, 64, 32, 32)), 0).astype("f4")
APART = {
    "sender": {"address": "tcp://10.0.0.1:1"},
    "recipient": {"address": "tcp://10.0.0.2:2"},
    "compression": None,
}
TOGETHER = {**APART, "recipient": {"address": "tcp://10.0.0.1:3"}}


def ways(value, context):
    header, frames = serialize(Travelling(value), context=context)
    back = deserialize(header, frames).value
    return [way for way, *_ in header["sub-header"]["pieces"]], back, header, frames


@pytest.fixture
def slow_link():
    with dask.config.set({"onnx.transfer.bandwidth": "5MB"}):
        yield


def test_between_hosts_it_is_packed(slow_link):
    found, back, _, frames = ways(RELU, APART)
    assert found == ["zeros"]
    assert sum(memoryview(f).nbytes for f in frames) < 0.6 * RELU.nbytes
    np.testing.assert_array_equal(back, RELU)


def test_dask_is_kept_from_compressing_what_a_fast_link_takes_sooner():
    with dask.config.set({"onnx.transfer.bandwidth": "20GB"}):
        assert ways(RELU, APART)[0] == ["raw"]
        found, back, _, frames = ways(RELU, {**APART, "compression": "lz4"})
    assert found == ["hidden"]
    assert maybe_compress(frames[0], compression="lz4")[0] is None
    assert maybe_compress(RELU.data, compression="lz4")[0] == "lz4"
    np.testing.assert_array_equal(back, RELU)


@pytest.mark.parametrize("context", [None, TOGETHER], ids=["to disk", "within a host"])
def test_elsewhere_it_is_not(slow_link, context):
    found, back, _, frames = ways(RELU, context)
    assert found == ["raw"]
    assert np.shares_memory(np.frombuffer(frames[0], "f4"), RELU)
    np.testing.assert_array_equal(back, RELU)


def test_it_can_be_switched_off(slow_link):
    with dask.config.set({"onnx.transfer.pack": False}):
        assert ways(RELU, APART)[0] == ["raw"]


def test_runs_travel_piece_by_piece(slow_link):
    runs = Runs((RELU[:2], RELU[2:]), 4, False)
    found, back, _, _ = ways(runs, APART)
    assert found == ["zeros", "zeros"]
    assert back.rows == 4 and not back.is_filled
    np.testing.assert_array_equal(np.concatenate(back.pieces), RELU)


@pytest.mark.parametrize(
    "value", [np.array(["a", "b"], object), [{"a": 1.0}, {"a": 2.0}]], ids=["strings", "maps"]
)
def test_what_is_no_tensor_is_pickled(slow_link, value):
    header, frames = serialize(Travelling(value), context=APART)
    assert list(deserialize(header, frames).value) == list(value)


def test_dask_knows_what_it_weighs():
    assert sizeof(Travelling(RELU)) >= RELU.nbytes
    assert sizeof(Travelling(Runs((RELU, RELU), 8, False))) >= 2 * RELU.nbytes


def entry(compressed, duration, who="tcp://10.0.0.2:9", start=100.0):
    return {
        "who": who,
        "compressed": compressed,
        "duration": duration,
        "start": start,
        "stop": start + duration,
    }


def rate_of(monkeypatch, log, packing=()):
    monkeypatch.setattr(transfer, "own_worker", lambda: SimpleNamespace(transfer_outgoing_log=log))
    transfer._packing.clear()
    transfer._packing["10.0.0.2"].extend(packing)
    return transfer._measured_rate("10.0.0.2")


def test_the_links_rate_comes_from_what_was_sent_over_it(monkeypatch):
    log = [entry(10_000_000, 1.0), entry(100, 0.5), entry(10**9, 1.0, "tcp://10.0.0.3:9")]
    assert rate_of(monkeypatch, log) == 10_000_000


def test_time_spent_packing_is_not_the_links(monkeypatch):
    assert rate_of(monkeypatch, [entry(10_000_000, 1.0)], [(100.5, 0.5)]) == 20_000_000


def test_an_unknown_link_is_what_dask_takes_it_for(monkeypatch):
    assert rate_of(monkeypatch, []) == 100_000_000
