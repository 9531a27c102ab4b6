from __future__ import annotations

import numpy as np
import psutil
import pytest
from builders import dense_model, make_model, node, value
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime.session import (
    build_session,
    profiling_session,
    session_build_error,
)
from dask_onnx.runtime.session_cache import SESSION_CACHE
from dask_onnx.runtime.session_runs import run_session


def test_options_are_part_of_the_key():
    model = dx.load(dense_model())
    x = np.zeros((2, 8), "f4")
    for level in ("disable", "all"):
        plan = model.plan(session=SessionSpec(optimization=level))
        model.predict(x, plan=plan)
    assert len(SESSION_CACHE.sessions) == 2


def test_a_missing_provider_is_an_error(tmp_path):
    spec = SessionSpec(providers=("NoSuchProvider",))
    with pytest.raises(dx.StageError) as caught:
        build_session(b"", tmp_path, spec, weight_bytes=0, label="s")
    assert (caught.value.option, caught.value.stage) == ("providers", "s")
    assert "NoSuchProvider" in caught.value.reason


def test_a_stage_that_ort_cannot_build_is_a_stage_error(tmp_path):
    with pytest.raises(dx.StageError) as caught:
        build_session(b"nonsense", tmp_path, SessionSpec(), weight_bytes=0, label="s")
    assert caught.value.stage == "s"
    assert "INVALID_PROTOBUF" in caught.value.reason


def test_session_build_error_is_the_message_of_ort():
    model = make_model(
        [node("Relu", "x", "y")],
        [value("x", ["N"], TensorProto.INT64)],
        [value("y", ["N"], TensorProto.INT64)],
        opset=17,
    )
    assert session_build_error(model, ()).startswith("9 : NOT_IMPLEMENTED : ")
    assert session_build_error(dense_model(), ()) is None


def test_a_failed_run_names_stage_and_reason(tmp_path):
    proto = dense_model().SerializeToString()
    session = build_session(proto, tmp_path, SessionSpec(), weight_bytes=0, label="s")
    with pytest.raises(dx.RunError) as caught:
        run_session(session, [np.zeros((2, 3), "f4")], "s", ["x"])
    assert caught.value.stage == "s"
    assert "INVALID_ARGUMENT" in caught.value.reason


def test_a_profiling_session_writes_a_profile(tmp_path):
    proto = dense_model().SerializeToString()
    session = profiling_session(proto, tmp_path, SessionSpec(), tmp_path / "profile")
    session.run([np.zeros((2, 8), "f4")])
    assert (tmp_path / session.end_profiling()).stat().st_size > 0


def test_config_entries_are_sorted():
    by_dict = SessionSpec(config={"b": "2", "a": "1"})
    by_pairs = SessionSpec(config=(("a", "1"), ("b", "2")))
    assert by_dict == by_pairs and hash(by_dict) == hash(by_pairs)
    assert by_dict.config == (("a", "1"), ("b", "2"))


def test_one_provider_may_be_named_without_a_tuple():
    assert SessionSpec(providers="CPUExecutionProvider") == SessionSpec()


@pytest.mark.parametrize("threads", [-1, 1.5, "2"])
def test_an_invalid_number_of_threads_is_refused(threads):
    with pytest.raises(dx.PlanError, match="intra_op_num_threads is"):
        SessionSpec(intra_op_num_threads=threads)


@pytest.mark.parametrize(
    "spec",
    [
        SessionSpec(memory_pattern=False),
        SessionSpec(arena_shrinkage=True),
        SessionSpec(config={"session.disable_prepacking": "1"}),
        SessionSpec(intra_op_num_threads=2),
    ],
    ids=["pattern", "shrinkage", "config", "threads"],
)
def test_every_option_makes_a_session_of_its_own(spec):
    model = dx.load(dense_model())
    x = np.ones((2, 8), "f4")
    expected = model.predict(x, plan=model.plan(session=SessionSpec(intra_op_num_threads=1)))
    # Kernels on packed and on unpacked weights add in another order.
    found = model.predict(x, plan=model.plan(session=spec))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(SESSION_CACHE.sessions) == 2


def test_a_shrunk_arena_gives_its_memory_back():
    model = dx.load(
        make_model(
            [node("Relu", "x", "h"), node("Exp", "h", "e"), node("ReduceSum", "e", "y")],
            [value("x", ["N", 1000])],
            [value("y", [1, 1])],
        )
    )
    x, process = np.zeros((40_000, 1000), "f4"), psutil.Process()  # 160 MB, and so is h
    before = process.memory_info().rss
    model.predict(x, plan=model.plan(session=SessionSpec(arena_shrinkage=True)))
    assert process.memory_info().rss - before < 100 * 2**20
