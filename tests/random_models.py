"""Hypothesis strategy for random small models."""

from __future__ import annotations

import onnx
from builders import make_model, node, value, weights
from hypothesis import strategies as st

WIDTH = 6
UNARY = ["Relu", "Neg", "Abs", "Sigmoid", "Tanh", "Identity"]
BINARY = ["Add", "Sub", "Mul", "Max"]


@st.composite
def models(draw) -> onnx.ModelProto:
    """Draw a model with inputs x and z (N, 6), and a random DAG of values (N, 6).

    One to three of the values are outputs.
    """
    values, nodes, constants = ["x", "z"], [], {}
    for i in range(draw(st.integers(1, 12))):
        one, other = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        out = f"v{i}"
        kind = draw(
            st.sampled_from(["unary", "binary", "matmul", "split", "turn", "mean", "concat"])
        )
        if kind == "unary":
            nodes.append(node(draw(st.sampled_from(UNARY)), one, out))
        elif kind == "binary":
            nodes.append(node(draw(st.sampled_from(BINARY)), f"{one} {other}", out))
        elif kind == "matmul":
            square = [name for name, array in constants.items() if array.shape == (WIDTH, WIDTH)]
            weight = draw(st.sampled_from([*square, f"w{i}"]))  # weights may be tied
            constants.setdefault(weight, weights(WIDTH, WIDTH, seed=i) / WIDTH)
            nodes.append(node("MatMul", f"{one} {weight}", out))
        elif kind == "split":
            nodes.append(node("Split", one, f"{out}a {out}b", axis=1))
            nodes.append(node("Concat", f"{out}b {out}a", out, axis=1))
        elif kind == "turn":
            nodes.append(node("Transpose", one, f"{out}t", perm=[1, 0]))
            nodes.append(node("Relu", f"{out}t", f"{out}r"))
            nodes.append(node("Transpose", f"{out}r", out, perm=[1, 0]))
        elif kind == "mean":
            nodes.append(node("ReduceMean", one, f"{out}m", axes=[1]))
            nodes.append(node("Sub", f"{other} {out}m", out))
        else:
            nodes.append(node("Concat", f"{one} {other}", f"{out}c", axis=1))
            constants[f"w{i}"] = weights(2 * WIDTH, WIDTH, seed=i) / WIDTH
            nodes.append(node("MatMul", f"{out}c w{i}", out))
        values.append(out)
    made = values[2:]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    inputs = [value("x", ["N", WIDTH]), value("z", ["N", WIDTH])]
    return make_model(nodes, inputs, [value(o, ["N", WIDTH]) for o in outputs], constants)
