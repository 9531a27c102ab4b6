"""Undocumented interfaces of ONNX Runtime still behave as `onnxruntime_internals` expects."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
from builders import make_model, node, value

from dask_onnx.core.errors import StageError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime import onnxruntime_internals as internals
from dask_onnx.runtime.profile import number_nodes
from dask_onnx.runtime.session import build_session, profiling_session

MODULE = "dask_onnx/runtime/onnxruntime_internals.py"
BROKEN = f"onnxruntime {onnxruntime.__version__} has changed; adapt {MODULE}: "


def chain():
    return number_nodes(
        make_model(
            [node("Relu", "x", "h"), node("Neg", "h", "y")],
            [value("x", ["N", 8])],
            [value("y", ["N", 8])],
        )
    )


def test_get_all_opkernel_def_lists_cpu_kernels_with_their_versions():
    assert internals.has_kernel("", "Relu", 17), f"{BROKEN}no kernel of Relu in opset 17"
    assert internals.has_kernel("com.microsoft", "Gelu", 1), f"{BROKEN}no kernel of its own Gelu"
    assert not internals.has_kernel("", "Relu", 1), f"{BROKEN}Relu has no versions"
    assert not internals.has_kernel("", "NoSuchOperator", 17), f"{BROKEN}it lists any operator"


def test_get_all_operator_schema_tells_types_of_contrib_operators():
    schemas = internals.contrib_schemas()
    gelu = schemas.get(("com.microsoft", "Gelu"))
    assert gelu is not None, f"{BROKEN}no schema of com.microsoft::Gelu"
    assert gelu.output_type_from == (0,), f"{BROKEN}the type of Gelu's output is not its input's"
    assert ("", "Relu") not in schemas, f"{BROKEN}ONNX's own domain has a name"


def test_get_all_operator_schema_tells_versions_that_onnx_does_not_have():
    schemas = internals.contrib_schemas()
    simplified = schemas.get(("", "SimplifiedLayerNormalization"))
    assert simplified is not None, f"{BROKEN}no SimplifiedLayerNormalization in ai.onnx"
    assert simplified.is_in(1) and simplified.is_in(17), f"{BROKEN}it has a first version"
    affine = schemas.get(("", "Affine"))
    assert affine is not None and affine.is_in(9), f"{BROKEN}no Affine in opset 9"
    assert not affine.is_in(10), f"{BROKEN}schemas do not tell which operators are removed"


def test_error_messages_have_the_prefix_that_is_removed(tmp_path):
    with pytest.raises(StageError) as caught:
        build_session(b"nonsense", tmp_path, SessionSpec(), weight_bytes=0, label="s")
    reason = caught.value.reason
    assert reason.startswith("[ONNXRuntimeError] : "), f"{BROKEN}messages begin with {reason[:30]}"
    assert internals.without_error_prefix(reason).startswith("7 : INVALID_PROTOBUF : ")


def test_a_profile_has_the_seconds_of_every_kernel_call(tmp_path):
    session = profiling_session(
        chain().SerializeToString(), tmp_path, SessionSpec(), tmp_path / "profile"
    )
    for _ in range(3):
        session.run([np.ones((2, 8), np.float32)])
    seconds = internals.read_kernel_seconds(tmp_path / session.end_profiling())
    assert set(seconds) == {0, 1}, f"{BROKEN}events of a profile have other names or categories"
    assert [len(calls) for calls in seconds.values()] == [3, 3], f"{BROKEN}calls are missing"
    assert all(0 <= call < 1 for calls in seconds.values() for call in calls), (
        f"{BROKEN}durations are not in microseconds"
    )


def test_the_seconds_of_a_node_with_a_body_are_without_those_of_the_body(tmp_path):
    def kernel(name, op_type, start, duration, thread=1):
        facts = {"op_name": op_type, "activation_size": "8", "output_size": "4"}
        times = {"ts": start, "dur": duration, "tid": thread}
        return {"cat": "Node", "name": f"{name}_kernel_time", "args": facts, **times}

    profile = tmp_path / "profile.json"
    events = [
        kernel("before", "Relu", 100, 40),
        kernel("inner", "MatMul", 210, 30),
        kernel("elsewhere", "MatMul", 220, 500, thread=2),  # beside it, not inside
        kernel("inner", "MatMul", 245, 50),
        kernel("choose", "If", 200, 100),
        kernel("after", "Relu", 301, 9),
        {"cat": "Session", "name": "model_run", "ts": 100, "dur": 250, "tid": 1},
    ]
    profile.write_text(json.dumps(events))
    calls = internals.read_kernel_calls(profile)
    microseconds = [round(call.seconds * 1e6) for call in calls]
    assert microseconds == [40, 30, 500, 50, 20, 9]
    assert [call.name for call in calls if call.runs_others] == ["choose"]
    assert [call.moved_bytes for call in calls] == [12, 12, 12, 12, 0, 12]
