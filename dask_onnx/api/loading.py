"""`load`: a model in any form becomes a `Model`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from onnx.reference.op_run import OpRun

from dask_onnx.api.model import Model
from dask_onnx.api.model_trials import try_model
from dask_onnx.modelio.forms import Context, InputTypes, Opsets, to_model
from dask_onnx.modelio.model_faults import model_faults
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.modelio.rows_declaration import RowsDeclaration, check_rows
from dask_onnx.planning.stage_checks import check_operators
from dask_onnx.runtime.custom_kernels import collect_custom_kernels
from dask_onnx.runtime.model_support import check_versions_known


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
    name: str | None = None,
    untrusted: bool = False,
) -> Model:
    """Load an ONNX model from a file, a URL, bytes, text, or an object in memory.

    The model is parsed and checked. Calls of model-local functions are replaced by their bodies,
    except those that `custom_ops` or `replace` implements.

    Parameters
    ----------
    source : path, URL, bytes, file object, str, proto or onnx_ir.Model
        - A path, or a URL that fsspec opens, of an ``.onnx`` file or a text format of
          ``onnx.serialization``. External data are expected beside it. Its weights are not kept in
          memory: workers read them from there, once per host.
        - ONNX's textual syntax (``onnx.parser``).
        - A ModelProto; a GraphProto, with `opsets`; a FunctionProto or NodeProto, with
          `input_types`.
    opsets : int or mapping of str to int, optional
        Opset versions by domain for a GraphProto or NodeProto, or in addition to a FunctionProto's
        own; a number is the version of ai.onnx.
    input_types : mapping of str to type, or sequence of types, optional
        Types of the inputs of a FunctionProto or NodeProto, by name or in their order. A type is
        text such as ``"tensor(float)"``, a dtype, ``(dtype, shape)`` or a TypeProto.
    attributes : mapping of str to value, optional
        Values of a FunctionProto's attribute parameters.
    functions : sequence of FunctionProto
        Functions that a GraphProto, FunctionProto or NodeProto calls.
    custom_ops : sequence of subclasses of ``onnx.reference.op_run.OpRun``
        Kernels in Python for operators that are named by their class and its ``op_domain``: new
        operators, or existing ones. A class attribute ``axes = "independent"`` (element by element)
        or ``axes = (0,)`` declares the axes along which the operator works independently.
    replace : mapping of str to function, optional
        Kernels in Python by operator: ``{"Gelu": f}`` or ``{"domain::Op": f}``. `f` takes the
        inputs in order (None for an omitted one) and the attributes as keywords, and returns an
        array or a tuple of arrays. Functions and classes of importable modules are sent to workers
        by name, others by value.
    custom_op_libraries : sequence of path
        Shared libraries with operators for ONNX Runtime, at the same path on every worker. They run
        native code; no other library is ever loaded.
    rows : {"independent", "none"} or mapping of str to int, optional
        Declaration of the axes that carry rows, which is not checked. "independent": the open first
        axes. ``{"x": 1}``: axis 1 of input ``x``, and no other; rows of tables and items of bags
        then lie along it. "none": no axis, so every input is passed whole. By default rows are
        proven from the graph, and without a proof not cut.
    free_batch : bool
        True to open the number of rows that the graph was exported with; see `Model.freed`.
    name : str, optional
        Name of the model in dashboards, plans and messages. By default the name of its file without
        the extension, with that of its folder if files are called alike ("model.onnx"); of a model
        in memory the name of its graph, with a part of the token if graphs are ("main_graph").
    untrusted : bool
        True to load, plan and run the model in a subprocess first, unless this host has done so
        before: a damaged or hostile model may crash ONNX Runtime, or never end. The limits of time
        and memory are ``onnx.untrusted.seconds`` and ``onnx.untrusted.memory-bytes``. If the model
        has loops, whose turns may follow from values that are fed, each later run is ended after
        ``onnx.untrusted.max-run-seconds``. A loop of a trusted model runs for as long as it says.

    Returns
    -------
    Model
        The model, with nothing analysed or run yet.

    Raises
    ------
    ModelError
        With `untrusted`, the subprocess crashed or exceeded a limit. The file does not exist,
        is not ONNX, or is damaged; its external data are missing; an operator or opset is unknown;
        a custom kernel cannot be sent to workers; or, with `free_batch`, the number of rows cannot
        be opened.
    InputError
        `rows` does not fit the model's inputs.

    Examples
    --------
    >>> import dask_onnx as dx
    >>> model = dx.load("detector.onnx")
    >>> model = dx.load("s3://bucket/detector.onnx", rows="independent")  # doctest: +SKIP
    >>> model.inputs
    """
    custom = collect_custom_kernels(custom_ops, replace or {})
    context = Context(opsets, input_types, attributes, tuple(functions))
    kept = [] if custom is None else custom.names
    if untrusted:
        if hasattr(source, "read"):
            source = source.read()  # a file object can be read once
        elif not isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
            source, context = to_model(source, context), Context()
        try_model(source, kept)
    onnx_model = load_onnx(source, context=context, kept_functions=kept)
    if untrusted:
        onnx_model = dataclasses.replace(onnx_model, is_untrusted=True)
    if name:
        onnx_model = dataclasses.replace(onnx_model, name=name)
    if rows is not None:
        check_rows(rows, onnx_model.inputs)
        onnx_model = dataclasses.replace(onnx_model, rows=rows)
    check_versions_known(onnx_model.ir_version, onnx_model.opsets)
    model = Model(onnx_model, custom, tuple(os.fspath(path) for path in custom_op_libraries))
    if not custom_op_libraries:  # their operators are unknown until ORT builds a session
        names = () if custom is None else custom.names
        with model_faults("loaded", model.name):
            check_operators(model.facts, model._facts.schemas, names)
    return model.freed() if free_batch else model
