"""The check that every model passes before other code reads it.

A model that passes can be taken apart safely: names are text and defined once, tensors have the
values that their sizes need, attributes the types of their operators, functions and trees no
circles, and inlining functions a bounded result. Sizes that do not fit together, and values that an
operator rejects, are left to shape inference and to ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx

from dask_onnx.core.errors import ModelError
from dask_onnx.modelio.function_checks import check_functions
from dask_onnx.modelio.graph_checks import Scope, check_function, check_graph
from dask_onnx.modelio.operator_names import canonical_domain, is_onnx_domain
from dask_onnx.modelio.tensor_checks import check_text

_MAX_VERSION = 2**31 - 1
"""Largest version that ONNX's own functions take."""


def check_structure(model: onnx.ModelProto, kept: Collection[tuple[str, str]] = ()) -> None:
    """Check the structure of a model in the form that it was read in.

    Parameters
    ----------
    model : ModelProto
        Not changed.
    kept : collection of (str, str)
        Domain and type of the operators that the caller has kernels for.

    Raises
    ------
    ModelError
        The model is damaged, or larger than ``onnx.model.max-nodes``. Fields name the node or value
        at fault.
    """
    if not 0 <= model.ir_version <= _MAX_VERSION:
        raise ModelError(
            f"the model has the IR version {model.ir_version}, which does not exist",
            "export the model again: it is damaged",
            numbers={"ir_version": model.ir_version},
        )
    opsets = _checked_opsets(model.opset_import)
    for function in model.functions:
        check_text(function.name, function.domain, function.overload, *function.attribute)
    # First, as a graph that is too large takes long to check.
    check_functions(model, kept)
    own = {(canonical_domain(f.domain), f.name) for f in model.functions}
    foreign = frozenset(own | set(kept))
    for function in model.functions:
        versions = opsets | _checked_opsets(function.opset_import)
        parameters = {*function.attribute, *(each.name for each in function.attribute_proto)}
        check_function(function, Scope(versions, foreign, frozenset(parameters)))
    check_graph(model.graph, Scope(opsets, foreign))


def _checked_opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Return the version of each domain; the last import of one counts."""
    versions: dict[str, int] = {}
    for opset in imports:
        check_text(opset.domain)
        least = 1 if is_onnx_domain(opset.domain) else 0
        if not least <= opset.version <= _MAX_VERSION:
            raise ModelError(
                f"the model imports version {opset.version} of the opset "
                f"{opset.domain or 'ai.onnx'}, which does not exist",
                "export the model again: it is damaged, or lacks the version of its opset",
                numbers={"opset": opset.version},
            )
        versions[canonical_domain(opset.domain)] = opset.version
    return versions
