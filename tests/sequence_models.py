"""Small models with attention over a sequence: x (N, T, 32) -> y."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from builders import make_model, node, value, weights
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS = 32, 4
SIZE = WIDTH // HEADS
MICROSOFT = {"com.microsoft": 1}

_CONSTANTS = {
    "zero": np.array(0),
    "one": np.array(1),
    "first": np.array([0]),
    "second": np.array([1]),
    "outer": np.array([0, 1]),
    "heads": np.array([HEADS, SIZE]),
    "width": np.array([WIDTH]),
    "root": np.array(np.sqrt(SIZE), np.float32),
    "half": np.array([SIZE // 2]),
    "end": np.array([2**62]),
    "last": np.array([-1]),
    "none": np.array(0, np.float32),
    "never": np.array(-1e9, np.float32),
}

Weights = dict[str, np.ndarray]
Nodes = list[onnx.NodeProto]


def projections(x: str, prefix: str = "") -> tuple[Nodes, Weights]:
    """Return the projections to queries, keys and values (N, T, 32)."""
    nodes = [node("MatMul", f"{x} {prefix}w{p}", f"{prefix}{p}", f"{prefix}{p}") for p in "qkv"]
    made = {f"{prefix}w{p}": weights(WIDTH, WIDTH, seed=i) / 6 for i, p in enumerate("qkv")}
    return nodes, made


def attention_layer(
    x: str, prefix: str, mask: str = "", *, is_rotary: bool = False
) -> tuple[Nodes, Weights]:
    """Return a residual attention layer of plain operators and computed shapes, to {prefix}y."""
    nodes, made = projections(x, prefix)

    def add(op: str, inputs: str, output: str, **attributes: object) -> str:
        nodes.append(node(op, inputs, prefix + output, name=prefix + output, **attributes))
        return prefix + output

    add("Shape", x, "shape")
    add("Slice", f"{prefix}shape first two", "rows")
    add("Concat", f"{prefix}rows heads", "split", axis=0)
    add("Concat", f"{prefix}rows width", "joined", axis=0)
    for part in "qkv":
        add("Reshape", f"{prefix}{part} {prefix}split", f"{part}s")
        add("Transpose", f"{prefix}{part}s", f"{part}t", perm=[0, 2, 1, 3])
    q, k = f"{prefix}qt", f"{prefix}kt"
    if is_rotary:
        q, k = (_rotated(add, prefix, part) for part in "qk")
    scores = add("MatMul", f"{q} {add('Transpose', k, 'turned', perm=[0, 1, 3, 2])}", "scores")
    scores = add("Div", f"{scores} root", "scaled")
    scores = add("Add", f"{scores} {mask}", "masked") if mask else scores
    mixed = add("MatMul", f"{add('Softmax', scores, 'soft', axis=-1)} {prefix}vt", "mixed")
    mixed = add("Transpose", mixed, "back", perm=[0, 2, 1, 3])
    add("Add", f"{x} {add('Reshape', f'{mixed} {prefix}joined', 'out')}", "y")
    return nodes, made


def _rotated(add, prefix: str, part: str) -> str:
    """Apply rotary positions to queries or keys: x * cos + rotate_half(x) * sin."""
    x = f"{prefix}{part}t"
    low = add("Slice", f"{x} first half last", f"{part}low")
    high = add("Slice", f"{x} half end last", f"{part}high")
    turned = add("Concat", f"{add('Neg', high, f'{part}neg')} {low}", f"{part}turn", axis=-1)
    along = add("Mul", f"{x} cos", f"{part}cos")
    return add("Add", f"{along} {add('Mul', f'{turned} sin', f'{part}sin')}", f"{part}rotary")


def in_layers(
    before: Sequence[onnx.NodeProto], made: Mapping[str, np.ndarray], mask: str = "", **options
) -> onnx.ModelProto:
    """Return two attention layers after nodes that compute masks or positions."""
    nodes, x = list(before), "x"
    made = {**_CONSTANTS, "two": np.array([2]), **made}
    for layer in "ab":
        own, own_weights = attention_layer(x, layer, mask, **options)
        nodes += own
        made |= own_weights
        x = f"{layer}y"
    nodes.append(node("Identity", x, "y", "result"))
    used = {name for each in nodes for name in each.input}
    made = {name: array for name, array in made.items() if name in used}
    return sequence_model(nodes, made)


def sequence_model(
    nodes: Sequence[onnx.NodeProto],
    made: Mapping[str, np.ndarray],
    inputs: Sequence[onnx.ValueInfoProto] = (),
    output: Sequence[object] = ("N", "T", WIDTH),
    **options,
) -> onnx.ModelProto:
    x = value("x", ["N", "T", WIDTH])
    return make_model(nodes, [x, *inputs], [value("y", list(output))], made, **options)


def encoder() -> onnx.ModelProto:
    return in_layers([], {})


_LENGTH = [node("Shape", "x", "xs"), node("Gather", "xs one", "T")]


def decoder_by_range() -> onnx.ModelProto:
    """Return an encoder with a causal mask from a comparison of positions."""
    mask = [
        *_LENGTH,
        node("Range", "zero T one", "positions", "positions"),
        node("Unsqueeze", "positions second", "queries"),
        node("Unsqueeze", "positions first", "keys"),
        node("LessOrEqual", "keys queries", "allowed", "allowed"),
        node("Where", "allowed none never", "bias", "bias"),
        node("Unsqueeze", "bias outer", "mask", "mask"),
    ]
    return in_layers(mask, {}, "mask")


def decoder_by_triangle() -> onnx.ModelProto:
    """Return an encoder with a causal mask from Trilu of a constant."""
    fill = numpy_helper.from_array(np.array([-1e9], np.float32))
    mask = [
        *_LENGTH,
        node("Unsqueeze", "T first", "T1"),
        node("Concat", "T1 T1", "square", axis=0),
        helper.make_node("ConstantOfShape", ["square"], ["full"], name="full", value=fill),
        node("Trilu", "full one", "triangle", "triangle", upper=1),
        node("Unsqueeze", "triangle outer", "mask", "mask"),
    ]
    return in_layers(mask, {}, "mask")


def rotary_encoder(most: int = 128) -> onnx.ModelProto:
    """Return an encoder with rotary positions from tables of cosines and sines, read by Range."""
    angles = np.arange(most)[:, None] / 10000 ** (np.arange(0, SIZE, 2) / SIZE)
    angles = np.concatenate([angles, angles], axis=-1)
    tables = {
        "cosines": np.cos(angles, dtype=np.float32),
        "sines": np.sin(angles, dtype=np.float32),
    }
    positions = [
        *_LENGTH,
        node("Range", "zero T one", "positions", "positions"),
        *(
            each
            for table, short in (("cosines", "cos"), ("sines", "sin"))
            for each in (
                node("Gather", f"{table} positions", f"{short}rows"),
                node("Unsqueeze", f"{short}rows outer", short),
            )
        ),
    ]
    return in_layers(positions, tables, is_rotary=True)


def fused(
    inputs: str = "q k v",
    more: Sequence[onnx.ValueInfoProto] = (),
    behind: Sequence[onnx.NodeProto] = (),
    made: Mapping[str, np.ndarray] | None = None,
    output: Sequence[object] = ("N", "T", WIDTH),
    **attributes,
) -> onnx.ModelProto:
    """Return com.microsoft.MultiHeadAttention with output `a`, or y if no nodes follow."""
    nodes, own = projections("x")
    result = "a" if behind else "y"
    attention = node(
        "MultiHeadAttention",
        inputs,
        result,
        "attention",
        num_heads=HEADS,
        domain="com.microsoft",
        **attributes,
    )
    return sequence_model(
        [*nodes, attention, *behind],
        {**own, **(made or {})},
        more,
        output,
        domains=MICROSOFT,
    )


def standard(inputs: str = "q k v", more=(), **attributes) -> onnx.ModelProto:
    """Return a model with Attention of opset 23."""
    nodes, own = projections("x")
    heads = {"q_num_heads": HEADS, "kv_num_heads": HEADS}
    attention = node("Attention", inputs, "y", "attention", **heads, **attributes)
    return sequence_model([*nodes, attention], own, more, opset=23, ir_version=10)


def padding_mask(name: str = "m") -> onnx.ValueInfoProto:
    return value(name, ["N", "T"], TensorProto.INT32)
