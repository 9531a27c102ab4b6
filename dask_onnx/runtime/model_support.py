"""Check of a model's IR version and opset imports against the installed ONNX Runtime (ORT).

ORT refuses a whole model whose versions it does not know, whatever its operators. It is asked by
building a model of one node with the same versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import TensorProto, helper

from dask_onnx.core.errors import ModelError
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.modelio.operator_names import has_known_owner
from dask_onnx.runtime.cores import ort_version
from dask_onnx.runtime.session import has_onnxruntime, session_build_error

_KNOWN_OPSETS = {"": 23, "ai.onnx.ml": 5, "com.microsoft": 1, "com.microsoft.nchwc": 1}
"""Newest opsets of onnxruntime 1.23.0, the oldest version that dask_onnx accepts."""
_OPSET = _KNOWN_OPSETS[""]
_KNOWN_IR_VERSION = 11
"""Newest IR version of the same."""
_reasons: BoundedCache[tuple[int, str, int], str | None] = BoundedCache(
    "versions that ONNX Runtime knows", 1000
)
"""IR version, domain and opset version to ORT's reason for refusing them; None if it does not."""


def check_versions_known(ir_version: int, opsets: Mapping[str, int]) -> None:
    """Raise an error if ORT refuses all models of these versions; do nothing without ORT.

    Parameters
    ----------
    ir_version : int
        The model's IR version.
    opsets : mapping of str to int
        The model's opset version of each domain.

    Raises
    ------
    ModelError
        ORT does not know the IR version or one of the opset versions.
    """
    if not has_onnxruntime():
        return
    # Common versions are not asked about: importing ORT takes longer than loading a model.
    reason = None if ir_version <= _KNOWN_IR_VERSION else _reason(ir_version, "", _OPSET)
    if reason is not None:
        newest = _newest(ir_version, lambda each: _reason(max(each, 3), "", _OPSET) is None)
        raise ModelError(
            f"the model has IR version {ir_version}; onnxruntime {ort_version()} knows up to "
            f"{newest}",
            f"upgrade onnxruntime, or set model.ir_version = {newest} and save the model again, if "
            "it uses nothing newer",
            reason=reason,
            numbers={"ir_version": ir_version, "newest_ir_version": newest},
        )
    for domain, version in opsets.items():
        if version > _KNOWN_OPSETS.get(domain, 0) and has_known_owner(domain):
            reason = _reason(_KNOWN_IR_VERSION, domain, version)
            if reason is not None:
                raise _unknown_opset(domain, version, reason)


def _unknown_opset(domain: str, version: int, reason: str) -> ModelError:
    name = domain or "ai.onnx"
    newest = _newest(version, lambda each: _reason(_KNOWN_IR_VERSION, domain, each) is None)
    return ModelError(
        f"the model needs opset {version} of {name}; onnxruntime {ort_version()} knows up to "
        f"{newest}",
        "upgrade onnxruntime, or export the model with an older opset",
        reason=reason,
        numbers={"opset": version, "newest_opset": newest},
    )


def _newest(unknown: int, is_known: Callable[[int], bool]) -> int:
    """Return the newest version below one that is not known, by bisection; 0 if none is known."""
    low, high = 0, unknown
    while high - low > 1:
        middle = (low + high) // 2
        if is_known(middle):
            low = middle
        else:
            high = middle
    return low


def _reason(ir_version: int, domain: str, version: int) -> str | None:
    return _reasons.get_or_make(
        (ir_version, domain, version), lambda: _build_error(ir_version, domain, version)
    )


def _build_error(ir_version: int, domain: str, version: int) -> str | None:
    """Return ORT's reason for not building any model of these versions; None if it builds one."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "versions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    imports = {"": _OPSET, domain: version}
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*each) for each in imports.items()],
        ir_version=ir_version,
    )
    return session_build_error(model, ())
