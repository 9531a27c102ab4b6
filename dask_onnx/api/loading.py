"""`load`: from a model in whatever form to what users hold."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from onnx.reference.op_run import OpRun

from dask_onnx.api.model import Model
from dask_onnx.modelio.forms import Context, InputTypes, Opsets
from dask_onnx.modelio.onnx_model import RowsDeclaration, check_rows, load_onnx
from dask_onnx.planning.stage_checks import check_operators
from dask_onnx.runtime.custom_kernels import collect_custom_kernels


def load(
    source: Any,
    *,
    opsets: Opsets | None = None,
    input_types: InputTypes | None = None,
    attributes: Mapping[str, Any] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    custom_ops: Sequence[type[OpRun]] = (),
    replace: Mapping[str, Callable[..., Any]] | None = None,
    custom_op_libraries: Sequence[str | os.PathLike[str]] = (),
    rows: RowsDeclaration = None,
    free_batch: bool = False,
) -> Model:
    """Load an ONNX model, in whatever form it comes.

    Parameters
    ----------
    source : path, URL for fsspec, bytes, file object, text, proto or onnx_ir.Model
        ``.onnx``, or a text format of ``onnx.serialization`` by its extension. External data is
        found beside a path. The weights of a model given by path are not kept in memory: workers
        read them from that path, once per host. Text is ONNX's textual syntax (``onnx.parser``);
        a proto is a ModelProto, GraphProto, FunctionProto or NodeProto.
    opsets : int or mapping of domain to version
        For a GraphProto or NodeProto (and a FunctionProto, to add to its own); a number is the
        version of ai.onnx.
    input_types : mapping of input to type, or sequence of types in the order of the inputs
        For a FunctionProto or NodeProto. A type is text as in ``"tensor(float)"``, a dtype,
        ``(dtype, shape)`` or a TypeProto.
    attributes : mapping, optional
        Values of a FunctionProto's attribute parameters.
    functions : sequence of FunctionProto
        That a GraphProto or FunctionProto calls.
    custom_ops : sequence of OpRun subclasses
        Kernels in Python (``onnx.reference.op_run.OpRun``) of operators named by their class and
        ``op_domain``: new ones, or in place of those that exist.
    replace : mapping of op type to function
        ``{"Gelu": f}`` or ``{"domain::Op": f}``: f takes the inputs in order (None for one that is
        left out) and the attributes as keywords, and returns an array or a tuple of them. Kernels
        of importable modules travel by name, others by value.
    custom_op_libraries : sequence of paths
        Shared libraries with operators for ONNX Runtime, at the same path on every worker. They
        run native code: none is ever loaded but those named here.
    rows : {"independent", "none"} or mapping of input to axis, optional
        Which axes carry rows that may be cut apart. By default that is proven from the graph, and
        what is not proven is not cut. "independent": the open first axes do, whatever the graph
        proves; ``{"x": 1}``: axis 1 of ``x`` does, and nothing else; "none": no axis does, so that
        every input is given once. What is declared here is believed.
    free_batch : bool, default False
        Open the number of rows that the graph was exported with; see `Model.freed`.

    Raises
    ------
    ModelError
        No such file; not ONNX; cut short; external data missing; an operator or an opset that
        nobody has; kernels that cannot be sent.
    """
    custom = collect_custom_kernels(custom_ops, replace or {})
    onnx_model = load_onnx(
        source,
        context=Context(opsets, input_types, attributes, tuple(functions)),
        kept_functions=[] if custom is None else custom.names,
    )
    if rows is not None:
        check_rows(rows, onnx_model)
        onnx_model = dataclasses.replace(onnx_model, rows=rows)
    model = Model(onnx_model, custom, tuple(os.fspath(path) for path in custom_op_libraries))
    if not custom_op_libraries:  # what is in those only ORT can tell, when it builds a session
        names = () if custom is None else custom.names
        check_operators(model.facts, model._facts.schemas, names)
    return model.freed() if free_batch else model
