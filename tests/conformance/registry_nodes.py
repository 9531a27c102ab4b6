"""Smallest models of one node, for every version of every operator in ONNX Runtime's registry.

Candidates are, in this order: the contrib cases of this project's tests, the node tests of ONNX's
backend suite, and nodes that are written from the operator's schema. ONNX Runtime decides which of
them is a model: the first that it runs counts, else the first that it builds.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as ort_state
from contrib_cases import LOADED, RUN
from contrib_nodes import SIZES
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from registry_cases import WRITTEN_CASES

from dask_onnx.modelio.operator_names import canonical_domain, operator_name
from dask_onnx.modelio.value_types import parse_type
from dask_onnx.runtime.onnxruntime_internals import has_kernel

MAX_RUNS = 60
"""Models of one operator that are tried before it counts as one that cannot be built."""
_NO_KERNEL = "Could not find an implementation"
"""Part of ONNX Runtime's message about a node without a kernel for the CPU."""
_SHAPES = ((2, 4), (1, 2, 4, 4), (4,), (2, 3, 4), ())
"""Shapes of all inputs that are tried."""
_PREFERRED = ("float", "int64", "string", "uint8", "int32", "bool", "int8", "float16", "double")
"""Element types that are tried first."""
_ATTRIBUTES: Mapping[str, Any] = {
    "to": 1, "axis": 0, "kernel_shape": [1, 1], "equation": "...->...", "blocksize": 1,
    "alpha": 1.0, "beta": 1.0, "axes": [0], "scales": [1.0, 1.0, 1.0, 1.0], "mode": "nearest",
    "border": [0] * 4,
    "num_heads": 2, "shape": [2], "dtype": 1, "hidden_size": 2, "pooled_shape": [1, 1], "size": 1,
    "cats_int64s": [0, 1], "keys_int64s": [0, 1], "values_floats": [0.0, 1.0], "direction": "LEFT",
    "max_gram_length": 1, "min_gram_length": 1, "max_skip_count": 0, "ngram_counts": [0],
    "ngram_indexes": [0], "pool_int64s": [1], "extent": [2, 2], "bias": [0.0, 0.0], "scale": 1.0,
    "values": [1.0], "coefficients": [1.0] * 4, "offset": [0.0], "classlabels_int64s": [0, 1],
    "output_height": 2, "output_width": 2, "detect_negative": 1, "num_scan_inputs": 1,
    "height": 1, "width": 1, "dim": 0, "pattern": ".*", "K": 32, "N": 4, "bits": 4,
    "block_size": 32, "kv_num_heads": 2, "channels": 1, "ngram_size": 1,
}  # fmt: skip
"""Values of required attributes by name."""
_DEFAULTS: Mapping[int, Any] = {
    AttributeProto.INT: 1,
    AttributeProto.FLOAT: 1.0,
    AttributeProto.STRING: "a",
    AttributeProto.INTS: [1],
    AttributeProto.FLOATS: [1.0],
    AttributeProto.STRINGS: ["a"],
}


@dataclass(frozen=True)
class Version:
    """One version of an operator in the registry."""

    domain: str
    name: str
    since: int
    """Opset version of the domain that brought it."""
    schema: Any
    """Schema in ONNX Runtime's registry."""

    def __str__(self) -> str:
        return f"{self.domain or 'ai.onnx'}::{self.name}-{self.since}"


@dataclass(frozen=True)
class OneNode:
    """A model of one node that ONNX Runtime builds or refuses."""

    model: onnx.ModelProto
    feeds: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[Any] | None = None
    """ONNX Runtime's results; None if it does not run the model."""
    reason: str = ""
    """Reason why ONNX Runtime does not run the model."""


def versions() -> list[Version]:
    """Return every version of every operator in ONNX Runtime's registry, in alphabetical order."""
    found = [
        Version(canonical_domain(s.domain), s.name, int(s.since_version), s)
        for s in ort_state.get_all_operator_schema()
    ]
    return sorted(found, key=lambda each: (each.domain, each.name, each.since))


def smallest_node(version: Version, cases: Mapping[tuple[str, str], Sequence[OneNode]]) -> OneNode:
    """Return a model of one node of an operator's version, run by ONNX Runtime if it can.

    Parameters
    ----------
    version : Version
    cases : mapping of (domain, name) to sequence of OneNode
        Known models by operator, from `known_cases`.
    """
    first: OneNode | None = None
    candidates = itertools.chain(
        _at_version(version, cases.get((version.domain, version.name), ())), _written(version)
    )
    for candidate in itertools.islice(candidates, MAX_RUNS):
        tried = _run(candidate)
        if tried.outputs is not None:
            return tried
        if first is None or (
            first.reason.startswith("builds not") and not tried.reason.startswith("builds not")
        ):
            first = tried
        if _NO_KERNEL in tried.reason and not has_kernel(
            version.domain, version.name, version.since
        ):
            return tried  # other values do not help
    return first or OneNode(onnx.ModelProto(), reason="no candidate")


def known_cases() -> dict[tuple[str, str], list[OneNode]]:
    """Return models of one node with their inputs, by (domain, operator)."""
    found: dict[tuple[str, str], list[OneNode]] = defaultdict(list)
    for each in (*RUN, *LOADED, *WRITTEN_CASES):
        found[each.domain, each.op].append(OneNode(each.model(), each.feeds(SIZES[0])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    for test in tests:
        model = test.model
        if model is None or len(model.graph.node) != 1 or test.data_sets is None:
            continue
        node = model.graph.node[0]
        inputs = test.data_sets[0][0]
        names = [value.name for value in model.graph.input]
        arrays = {n: _array(x) for n, x in zip(names, inputs, strict=False)}
        found[operator_name(node)].append(OneNode(model, arrays))
    return found


def _array(value: Any) -> Any:
    """Return a value of ONNX's node tests as ONNX Runtime takes it."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _at_version(version: Version, cases: Sequence[OneNode]) -> Iterator[OneNode]:
    """Yield known cases with the opset of a version, those that were made for it first."""

    def distance(case: OneNode) -> tuple[bool, int]:
        size = sum(np.size(x) for x in case.feeds.values() if isinstance(x, np.ndarray))
        return _since(case.model, version) != version.since, size

    for each in sorted(cases, key=distance)[: MAX_RUNS // 2]:
        model = onnx.ModelProto()
        model.CopyFrom(each.model)
        if _since(model, version) != version.since:
            for opset in model.opset_import:
                if canonical_domain(opset.domain) == version.domain:
                    opset.version = version.since
        yield OneNode(model, each.feeds)


def _since(model: onnx.ModelProto, version: Version) -> int:
    """Return the version of the operator that a model's opset selects."""
    imports = {canonical_domain(o.domain): o.version for o in model.opset_import}
    opset = imports.get(version.domain, 1)
    if not onnx.defs.has(version.name, opset, version.domain):
        return 1
    return int(onnx.defs.get_schema(version.name, opset, version.domain).since_version)


def _written(version: Version) -> Iterator[OneNode]:
    """Yield models of one node that are written from its schema."""
    schema = version.schema
    attributes = {
        name: _ATTRIBUTES.get(name, _DEFAULTS.get(int(a.type)))
        for name, a in schema.attributes.items()
        if a.required
    }
    if any(value is None for value in attributes.values()):
        return  # a tensor or a graph
    allowed = {t.type_param_str: _ordered(t.allowed_type_strs) for t in schema.type_constraints}
    least, most = schema.min_input, max(schema.min_input, 1)
    counts = sorted({least, min(most, schema.max_input)})
    for shape in _SHAPES:
        for count in counts:
            formal = [schema.inputs[min(i, len(schema.inputs) - 1)] for i in range(count)]
            used = list(dict.fromkeys(f.typeStr for f in formal if f.typeStr in allowed))
            for chosen in itertools.islice(itertools.product(*(allowed[t][:3] for t in used)), 6):
                kinds = dict(zip(used, chosen, strict=True))
                yield _one_node(
                    version, [kinds.get(f.typeStr, f.typeStr) for f in formal], shape, attributes
                )


def _ordered(types: Sequence[str]) -> list[str]:
    rank = {f"tensor({name})": i for i, name in enumerate(_PREFERRED)}
    return sorted(types, key=lambda each: (rank.get(each, 99), each))


def _one_node(
    version: Version, kinds: Sequence[str], shape: tuple[int, ...], attributes: Mapping[str, Any]
) -> OneNode:
    feeds, inputs = {}, []
    for index, kind in enumerate(kinds):
        value = onnx.ValueInfoProto(name=f"x{index}")
        value.type.CopyFrom(parse_type(kind))
        if kind.startswith("tensor("):
            value.type.tensor_type.shape.SetInParent()
            for size in shape:
                value.type.tensor_type.shape.dim.add().dim_value = size
            feeds[value.name] = _values(value.type.tensor_type.elem_type, shape)
        elif kind.startswith("seq(tensor("):
            elem_type = value.type.sequence_type.elem_type.tensor_type.elem_type
            feeds[value.name] = [_values(elem_type, shape)] * 2
        elif kind.startswith("map("):
            is_text = value.type.map_type.key_type == TensorProto.STRING
            elem_type = value.type.map_type.value_type.tensor_type.elem_type
            feeds[value.name] = {"a" if is_text else 0: _values(elem_type, ()).item()}
        inputs.append(value)
    names = [f"y{i}" for i in range(max(version.schema.min_output, 1))]
    node = helper.make_node(
        version.name,
        [value.name for value in inputs],
        names,
        name=version.name,
        domain=version.domain,
        **attributes,
    )
    graph = helper.make_graph(
        [node], "one", inputs, [onnx.ValueInfoProto(name=name) for name in names]
    )
    imports = {"": 17, version.domain: version.since}
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*each) for each in imports.items()], ir_version=8
    )
    return OneNode(model, feeds)


def _values(elem_type: int, shape: tuple[int, ...]) -> np.ndarray:
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    if elem_type == TensorProto.STRING:
        return np.full(shape, "a", object)
    count = math.prod(shape)
    numbers = np.linspace(0.1, 0.9, count) if dtype.kind == "f" else np.ones(count)
    return numbers.reshape(shape).astype(dtype)


def _run(case: OneNode) -> OneNode:
    """Return a model with the results of ONNX Runtime, or its reason for not running it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            case.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # whatever ONNX Runtime raises
        return OneNode(case.model, case.feeds, None, f"builds not: {_one_line(error)}")
    if any(value.name not in case.feeds for value in session.get_inputs()):
        return OneNode(case.model, case.feeds, None, "runs not: no values for its inputs")
    run_options = onnxruntime.RunOptions()
    run_options.log_severity_level = 4
    try:
        outputs = session.run(None, dict(case.feeds), run_options)
    except Exception as error:  # whatever ONNX Runtime raises
        return OneNode(case.model, case.feeds, None, f"runs not: {_one_line(error)}")
    return OneNode(case.model, case.feeds, outputs)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
