"""Output sizes of the operator STFT, whose default ONNX's shape inference takes for another."""

from __future__ import annotations

import onnx
from onnx import helper

from dask_onnx.modelio.weights import with_bodies


def name_one_sided(model: onnx.ModelProto) -> None:
    """Write ``onesided=1``, the default of STFT, where a node leaves the attribute out.

    ONNX's shape inference takes it for 0 there, and so finds too many frequencies.

    Parameters
    ----------
    model : ModelProto
        Changed in place.
    """
    for outer in model.graph.node:
        for node in with_bodies(outer):
            is_stft = node.op_type == "STFT" and node.domain in ("", "ai.onnx")
            if is_stft and all(attribute.name != "onesided" for attribute in node.attribute):
                node.attribute.append(helper.make_attribute("onesided", 1))
