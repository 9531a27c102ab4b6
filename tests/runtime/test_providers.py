"""Execution providers other than the CPU's, on a fake ONNX Runtime that has them.

GPU code paths are not run on a device here: the fake has a device's provider and runs on the CPU.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from builders import dense_model, make_model, node, value
from distributed import Client, LocalCluster
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.core.errors import PlanError, StageError
from dask_onnx.facts.host_checks import host_needs
from dask_onnx.runtime import prepack, session
from dask_onnx.runtime.host_needs import ask_host
from dask_onnx.runtime.session_cache import SESSION_CACHE
from dask_onnx.store.weight_store import Store

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
DEVICE_1 = ((CUDA, {"device_id": 1}),)
X = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
REAL = onnxruntime.InferenceSession


class FakeSession:
    """A session that says that it runs on the providers that it was asked for."""

    asked: list
    """Providers of each session that was built."""
    unusable: tuple = ()
    """Providers that ORT goes on without."""
    takes: tuple = ()
    """Operators that the device runs and the CPU does not."""

    def __init__(self, model, sess_options, providers):
        type(self).asked.append(providers)
        self._providers = [name for name, _ in providers if name not in type(self).unusable]
        proto = onnxruntime_proto(model)
        on_device = any(name != CPU for name, _ in providers)
        if on_device and {each.op_type for each in proto.graph.node} <= set(type(self).takes):
            return
        self._real = REAL(model, sess_options=sess_options, providers=[CPU])

    def get_providers(self):
        return [*self._providers, CPU]

    def __getattr__(self, name):
        return getattr(self._real, name)


def onnxruntime_proto(model):
    import onnx

    return onnx.load(model) if isinstance(model, str) else onnx.ModelProto.FromString(model)


@pytest.fixture
def device(monkeypatch):
    """Give ONNX Runtime a provider of a device."""
    kind = type("Fake", (FakeSession,), {"asked": [], "unusable": (), "takes": ()})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", kind)
    return kind


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (CUDA, (CUDA,)),
        ([CUDA, CPU], (CUDA, CPU)),
        ((CUDA, {"device_id": 1}), ((CUDA, (("device_id", "1"),)),)),
        (((CUDA, {"b": True, "a": 2}), CPU), ((CUDA, (("a", "2"), ("b", "True"))), CPU)),
        (((CUDA, {}),), (CUDA,)),
        (((CUDA, (("device_id", "1"),)),), ((CUDA, (("device_id", "1"),)),)),
    ],
)
def test_providers_are_stored_in_one_form_that_is_hashable_and_pickles(given, stored):
    spec = dx.SessionSpec(providers=given)
    assert spec.providers == stored and dx.SessionSpec(providers=stored) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(spec) == hash(dx.SessionSpec(providers=stored))
    assert spec != dx.SessionSpec() and not spec.is_on_cpu


@pytest.mark.parametrize(
    "given", [(), (CUDA, CUDA), (CUDA, (CUDA, {"device_id": 1})), (3,), ((CUDA, 3),), None, ("",)]
)
def test_providers_that_are_none_or_there_twice_are_refused(given):
    with pytest.raises(PlanError) as raised:
        dx.SessionSpec(providers=given)
    assert raised.value.option == "providers"


def test_sessions_are_built_with_the_options_and_cached_by_them(device):
    model, plain = dx.load(dense_model(hidden=23)), dx.load(dense_model(hidden=23))
    before = SESSION_CACHE.built
    for providers in (CUDA, DEVICE_1, DEVICE_1):
        plan = model.plan("whole", session=dx.SessionSpec(providers=providers))
        found = plan.predict(X, batch_size=None)
        np.testing.assert_array_equal(found, plain(X, batch_size=None))
    assert SESSION_CACHE.built == before + 3  # two of the device, and that of `plain`
    assert [(CUDA, {"device_id": "1"})] in device.asked and [(CUDA, {})] in device.asked


def test_the_probe_asks_the_providers_of_the_session(device):
    device.takes = ("OnlyOnDevice",)
    model = make_model(
        [node("Relu", "x", "a", "first"), node("OnlyOnDevice", "a", "y", "second", domain="gpu")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        domains={"gpu": 1},
    )
    facts = dx.load(model, custom_op_libraries=["/none.so"])._facts
    facts.libraries = ()
    kernels = facts.kernels_of(dx.SessionSpec(providers=CUDA))
    assert [each.kernel for each in kernels] == ["onnxruntime", "onnxruntime"]
    with pytest.raises(dx.ModelError) as raised:
        facts.kernels_of(dx.SessionSpec())
    assert raised.value.node == "second"


def test_an_engine_is_not_built_for_a_node_that_the_cpu_runs(device, monkeypatch):
    name = "TensorrtExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [name, CPU])
    facts = dx.load(dense_model(hidden=29))._facts
    facts.kernels_of(dx.SessionSpec(providers=name))
    assert device.asked and all(asked == [(CPU, {})] for asked in device.asked)


def test_a_provider_that_is_not_here_leaves_the_question_to_the_workers():
    model = dx.load(dense_model())
    plan = model.plan("per_node", session=dx.SessionSpec(providers=(CUDA, CPU)))
    assert {stage.kernel for stage in plan.stages} == {"onnxruntime"}
    with pytest.raises(StageError) as raised:
        plan.predict(X)
    assert raised.value.option == "providers" and CUDA in raised.value.reason


def test_a_worker_without_the_provider_is_told_before_work_starts():
    model = dx.load(dense_model())
    spec = dx.SessionSpec(providers=(CUDA, CPU))
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster),
    ):
        with pytest.raises(PlanError) as raised:
            model.plan("whole", session=spec).predict(X)
        assert raised.value.option == "providers"
        assert raised.value.numbers == {"workers": 1, "unable_workers": 1}


def test_a_provider_that_onnxruntime_goes_on_without_is_an_error(device):
    device.unusable = (CUDA,)
    model = dx.load(dense_model(hidden=31))
    spec = dx.SessionSpec(providers=DEVICE_1)
    with pytest.raises(StageError) as raised:
        model.plan("whole", session=spec).predict(X)
    assert raised.value.option == "providers" and CUDA in raised.value.reason
    # Workers say the same of themselves before work starts.
    (need,) = host_needs(model._facts, spec)
    (answer,) = ask_host((need,))
    assert CUDA in answer.lacks


def test_measured_times_are_kept_by_provider(device):
    facts = dx.load(dense_model(hidden=37))._facts
    specs = [dx.SessionSpec(), dx.SessionSpec(providers=CUDA), dx.SessionSpec(providers=DEVICE_1)]
    assert len({facts.times_token_of(spec) for spec in specs}) == 3
    threads = dx.SessionSpec(providers=CUDA, intra_op_num_threads=3)
    assert facts.times_token_of(threads) == facts.times_token_of(specs[1])


def test_weights_are_not_packed_for_other_devices():
    spec = dx.SessionSpec(providers=(CUDA, CPU))
    assert prepack.prepacked_folder(Store(), "m", "s", b"", spec, 2**40) is None


def test_openvino_gets_the_threads_of_the_session(device, monkeypatch):
    name = "OpenVINOExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [name, CPU])
    proto = dense_model().SerializeToString()
    for given, expected in (({}, "3"), ({"num_of_threads": 5}, "5")):
        spec = dx.SessionSpec(providers=((name, given),), intra_op_num_threads=3)
        session.build_session(proto, Path(), spec, weight_bytes=0, label="s")
        assert device.asked[-1] == [(name, {"num_of_threads": expected})]


def test_memory_is_returned_by_the_device_of_the_session(device, monkeypatch):
    entries = []
    options = onnxruntime.RunOptions

    class Options(options):
        def add_run_config_entry(self, name, value):
            entries.append(value)

    monkeypatch.setattr(onnxruntime, "RunOptions", Options)
    spec = dx.SessionSpec(providers=DEVICE_1, arena_shrinkage=True)
    proto = dense_model().SerializeToString()
    session.build_session(proto, Path(), spec, weight_bytes=0, label="s")
    assert entries == ["cpu:0;gpu:1"]


def test_types_that_the_cpu_lacks_run_where_the_device_has_them(device):
    device.takes = ("Relu",)
    model = make_model(
        [node("Relu", "x", "y", "only")],
        [value("x", ["N", 8], TensorProto.INT16)],
        [value("y", ["N", 8], TensorProto.INT16)],
    )
    facts = dx.load(model)._facts
    assert facts.kernels_of(dx.SessionSpec())[0].kernel == "reference"
    assert facts.kernels_of(dx.SessionSpec(providers=CUDA))[0].kernel == "onnxruntime"
