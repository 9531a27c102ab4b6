"""Damaged and hostile models: small valid models, and random changes to their bytes and fields."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError, Message
from onnx import TensorProto, helper, numpy_helper

WEIGHTS_FILE = "w.bin"
"""File of external data that `external_model` refers to, of `WEIGHTS_BYTES` bytes."""
WEIGHTS_BYTES = 16384

_INTEGERS = (0, 1, -1, 2, 7, 127, 2**31 - 1, -(2**31), 2**31, 2**62, -(2**62), 2**63 - 1, -(2**63))
_FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e38, -1e-38)
_TEXTS = (
    "",
    "x",
    "y",
    "gone",
    "a" * 5000,
    "\x00",
    "../w.bin",
    "/dev/zero",
    "-1",
    "1e400",
    "ai.onnx",
)
_MAX_DEPTH = 12


def _value(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _array(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    rng = np.random.default_rng(seed)
    return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)


def _ints(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _model(
    nodes: Any, inputs: Any, outputs: Any, weights: Any = (), **more: Any
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    more.setdefault("opset_imports", [helper.make_opsetid("", 17)])
    return helper.make_model(graph, ir_version=8, **more)


def image_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "s", "s", "v"], ["b"], "bn"),
        helper.make_node("Relu", ["b"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["m"], "pool", kernel_shape=[2, 2]),
        helper.make_node("GlobalAveragePool", ["m"], ["p"], "mean"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "g"], ["y"], "dense", transB=1),
    ]
    weights = [_array("w", 4, 3, 3, 3), _array("s", 4), _array("g", 5, 4)]
    weights.append(numpy_helper.from_array(np.ones(4, np.float32), "v"))
    return _model(nodes, [_value("x", ["N", 3, 12, 12])], [_value("y", ["N", 5])], weights)


def control_model() -> onnx.ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"], "keep"),
            helper.make_node("Add", ["sum", "x"], ["total"], "add"),
            helper.make_node("ReduceMean", ["total"], ["item"], "mean", keepdims=0),
        ],
        "body",
        [
            _value("i", [], TensorProto.INT64),
            _value("go", [], TensorProto.BOOL),
            _value("sum", None),
        ],
        [_value("go_on", [], TensorProto.BOOL), _value("total", None), _value("item", [])],
    )
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["looped"], [f"{name}_y"], f"{name}_node")],
            name,
            [],
            [_value(f"{name}_y", None)],
        )
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    nodes = [
        helper.make_node("Loop", ["turns", "", "x"], ["looped", "items"], "loop", body=body),
        helper.make_node("ReduceSum", ["items"], ["s"], "sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["cond"], "greater"),
        helper.make_node("If", ["cond"], ["y"], "if", **branches),
    ]
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    turns = numpy_helper.from_array(np.array(3, np.int64), "turns")
    return _model(nodes, [_value("x", ["N", 4])], [_value("y", ["N", 4])], [zero, turns])


def function_model() -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    inner = helper.make_function(
        "mine", "inner", ["a"], ["b"], [helper.make_node("Softmax", ["a"], ["b"])], imports
    )
    scale = helper.make_node("LeakyRelu", ["p"], ["q"])
    alpha = scale.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT)
    alpha.ref_attr_name = "alpha"
    outer = helper.make_function(
        "mine",
        "outer",
        ["o"],
        ["q"],
        [helper.make_node("inner", ["o"], ["p"], domain="mine"), scale],
        imports,
        ["alpha"],
    )
    nodes = [
        helper.make_node("outer", ["x"], ["h"], "call", domain="mine", alpha=0.1),
        helper.make_node("MatMul", ["h", "w"], ["y"], "dense"),
    ]
    return _model(
        nodes,
        [_value("x", ["N", 4])],
        [_value("y", ["N", 2])],
        [_array("w", 4, 2)],
        opset_imports=imports,
        functions=[inner, outer],
    )


def tree_model() -> onnx.ModelProto:
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        "trees",
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0] * 5 + [1] * 3,
        nodes_nodeids=[0, 1, 2, 3, 4, 0, 1, 2],
        nodes_featureids=[0, 1, 0, 0, 0, 2, 0, 0],
        nodes_values=[0.5, -0.5, 0.0, 0.0, 0.0, 0.1, 0.0, 0.0],
        nodes_modes=[b"BRANCH_LEQ"] * 2 + [b"LEAF"] * 3 + [b"BRANCH_LEQ"] + [b"LEAF"] * 2,
        nodes_truenodeids=[1, 2, 0, 0, 0, 1, 0, 0],
        nodes_falsenodeids=[4, 3, 0, 0, 0, 2, 0, 0],
        target_treeids=[0, 0, 0, 1, 1],
        target_nodeids=[2, 3, 4, 1, 2],
        target_ids=[0] * 5,
        target_weights=[1.0, 2.0, 3.0, 4.0, 5.0],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return _model([node], [_value("x", ["N", 3])], [_value("y", ["N", 1])], opset_imports=imports)


def shape_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "zero"], ["n"], "rows"),
        helper.make_node("Concat", ["n", "rest"], ["target"], "concat", axis=0),
        helper.make_node("Reshape", ["x", "target"], ["r"], "reshape"),
        helper.make_node("Slice", ["r", "zero", "two", "one"], ["s"], "slice"),
        helper.make_node("Resize", ["s", "", "scales"], ["z"], "resize", mode="nearest"),
        helper.make_node("Transpose", ["z"], ["t"], "turn", perm=[0, 2, 1]),
        helper.make_node("Cast", ["t"], ["y"], "cast", to=TensorProto.DOUBLE),
    ]
    scales = numpy_helper.from_array(np.array([1, 1, 2], np.float32), "scales")
    weights = [_ints("zero", 0), _ints("one", 1), _ints("two", 2), _ints("rest", 2, 6), scales]
    return _model(
        nodes,
        [_value("x", ["N", 12])],
        [_value("y", ["N", 12, "k"], TensorProto.DOUBLE)],
        weights,
    )


def external_model() -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 64])
    weight.data_location = TensorProto.EXTERNAL
    for key, text in (("location", WEIGHTS_FILE), ("offset", "0"), ("length", "16384")):
        weight.external_data.add(key=key, value=text)
    indices = numpy_helper.from_array(np.array([1, 9, 63], np.int64), "at")
    sparse = helper.make_sparse_tensor(_array("sparse", 3), indices, [64])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "dense"),
        helper.make_node("Add", ["h", "sparse"], ["y"], "bias"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [_value("x", ["N", 64])],
        [_value("y", ["N", 64])],
        [weight],
        sparse_initializer=[sparse],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def text_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["word"],
            ["index"],
            "encode",
            domain="ai.onnx.ml",
            keys_strings=["a", "b"],
            values_int64s=[1, 2],
        ),
        helper.make_node("Gather", ["table", "index"], ["rows"], "lookup"),
        helper.make_node("LSTM", ["rows", "w", "r"], ["", "h"], "lstm", hidden_size=3),
        helper.make_node("Squeeze", ["h", "axes"], ["y"], "squeeze"),
    ]
    weights = [
        _array("table", 4, 5),
        _array("w", 1, 12, 5),
        _array("r", 1, 12, 3),
        _ints("axes", 0),
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return _model(
        nodes,
        [_value("word", ["T", "N"], TensorProto.STRING)],
        [_value("y", ["N", 3])],
        weights,
        opset_imports=imports,
    )


def quantised_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantise"),
        helper.make_node("FusedMatMul", ["d", "w"], ["m"], "dense", domain="com.microsoft"),
        helper.make_node("TopK", ["m", "k"], ["y", "i"], "top"),
    ]
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "s")
    zero = numpy_helper.from_array(np.array(128, np.uint8), "z")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return _model(
        nodes,
        [_value("x", ["N", 6])],
        [_value("y", ["N", 2]), _value("i", ["N", 2], TensorProto.INT64)],
        [scale, zero, _array("w", 6, 6), _ints("k", 2)],
        opset_imports=imports,
    )


MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "image": image_model,
    "control": control_model,
    "function": function_model,
    "tree": tree_model,
    "shape": shape_model,
    "external": external_model,
    "text": text_model,
    "quantised": quantised_model,
}
"""Makers of the valid models, by name."""


def _messages(message: Message, depth: int = 0) -> Iterator[Message]:
    yield message
    if depth > _MAX_DEPTH:
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner, depth + 1)


def _names(model: onnx.ModelProto) -> list[str]:
    names = [v.name for v in (*model.graph.input, *model.graph.output, *model.graph.initializer)]
    return names + [n for node in model.graph.node for n in (*node.input, *node.output)]


def _nasty(field: Any, rng: random.Random, names: list[str]) -> Any:
    kinds = type(field)
    if field.cpp_type in (kinds.CPPTYPE_INT32, kinds.CPPTYPE_INT64):
        value = rng.choice((*_INTEGERS, rng.randrange(0, 30)))
        bits = 31 if field.cpp_type == kinds.CPPTYPE_INT32 else 63
        return max(-(2**bits), min(2**bits - 1, value))
    if field.cpp_type == kinds.CPPTYPE_UINT64:
        return rng.choice([each for each in _INTEGERS if each >= 0])
    if field.cpp_type in (kinds.CPPTYPE_FLOAT, kinds.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if field.cpp_type == kinds.CPPTYPE_ENUM:
        return rng.choice([each.number for each in field.enum_type.values])
    if field.type == kinds.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 7, 64, 4096)))
    return rng.choice((*_TEXTS, *names))


def _change_repeated(message: Message, field: Any, rng: random.Random, names: list[str]) -> str:
    values = getattr(message, field.name)
    at = rng.randrange(len(values)) if len(values) else 0
    action = rng.choice(("remove", "twice", "clear", "swap", "set", "many"))
    if not len(values) or action == "clear":
        message.ClearField(field.name)
        return "clear"
    if action == "remove":
        del values[at]
    elif action in ("twice", "many"):
        for _ in range(1 if action == "twice" else 70):
            values.append(values[at])
    elif action == "swap":
        other = rng.randrange(len(values))
        kept = list(values)
        kept[at], kept[other] = kept[other], kept[at]
        copies = (
            [type(v).FromString(v.SerializeToString()) for v in kept]
            if field.message_type
            else kept
        )
        del values[:]
        values.extend(copies)
    elif field.message_type is None:
        values[at] = _nasty(field, rng, names)
    else:
        values[at].CopyFrom(values[rng.randrange(len(values))])
    return action


def change_field(model: onnx.ModelProto, rng: random.Random) -> str:
    """Change one field of one message of a model, in place; return what was changed."""
    names = _names(model)
    message = rng.choice(list(_messages(model)))
    fields = list(message.DESCRIPTOR.fields)
    given = [field for field, _ in message.ListFields()]
    field = rng.choice(given) if given and rng.random() < 0.8 else rng.choice(fields)
    if field.is_repeated:
        if not len(getattr(message, field.name)) and field.message_type is None:
            getattr(message, field.name).append(_nasty(field, rng, names))
            return f"{message.DESCRIPTOR.name}.{field.name} add"
        action = _change_repeated(message, field, rng, names)
    elif field.message_type is not None:
        action = "empty" if rng.random() < 0.5 else "clear"
        message.ClearField(field.name)
        if action == "empty":
            getattr(message, field.name).SetInParent()
    else:
        action = "set"
        setattr(message, field.name, _nasty(field, rng, names))
    return f"{message.DESCRIPTOR.name}.{field.name} {action}"


def _change_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    action = rng.choice(("flip", "truncate", "random", "cut", "repeat"))
    at = rng.randrange(len(data))
    if action == "flip":
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return action, bytes(changed)
    if action == "truncate":
        return action, data[:at]
    length = rng.choice((1, 4, 64))
    if action == "random":
        return action, data[:at] + rng.randbytes(length) + data[at + length :]
    if action == "cut":
        return action, data[:at] + data[at + length :]
    return action, data[: at + length] + data[at:]


def mutation(seed: int) -> tuple[str, bytes]:
    """Return the name and the bytes of one damaged model; equal for equal seeds."""
    rng = random.Random(seed)
    kind = rng.choice(list(MODELS))
    model = MODELS[kind]()
    if rng.random() < 0.35:
        action, data = _change_bytes(model.SerializeToString(), rng)
        return f"{kind} {action}", data
    actions = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            actions.append(change_field(model, rng))
        except (ValueError, TypeError, DecodeError, UnicodeError):
            actions.append("refused by protobuf")
    try:
        return f"{kind} {' and '.join(actions)}", model.SerializeToString()
    except (EncodeError, ValueError):
        return f"{kind} cannot be written", b""
