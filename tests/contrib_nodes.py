"""Models of one node in a short notation, and an encoder as exporters write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from builders import make_model, node, value, weights
from onnx import TensorProto, helper

CONTRIB = "com.microsoft"
SIZES = ({"B": 2, "T": 3, "P": 4, "W": 8}, {"B": 1, "T": 5, "P": 1, "W": 12})
DTYPES: Mapping[str, np.dtype] = {
    "f": np.dtype("f4"),
    "h": np.dtype("f2"),
    "u": np.dtype("u1"),
    "i": np.dtype("i1"),
    "s": np.dtype("i2"),
    "I": np.dtype("i4"),
    "L": np.dtype("i8"),
    "b": np.dtype("?"),
    "e": np.dtype(ml_dtypes.float8_e4m3fn),
    "S": np.dtype(object),
}
Values = Callable[[Mapping[str, int]], Mapping[str, Any]]


@dataclass(frozen=True)
class Case:
    """A node whose inputs are words ``name=dtype:sizes``.

    A word without "=" is a constant, "-" an omitted input or output; an output may have a dtype.
    """

    op: str
    inputs: str
    outputs: str
    constants: Mapping[str, Any]
    attributes: Mapping[str, Any]
    values: Values
    """Function from sizes to the values of inputs that must not be random."""
    domain: str
    version: int

    def model(self) -> onnx.ModelProto:
        inputs = [
            value(name, dims(kind), helper.np_dtype_to_tensor_dtype(DTYPES[kind[0]]))
            for name, kind in words(self.inputs)
            if kind
        ]
        outputs = words(self.outputs)
        results = [
            value(name, None, helper.np_dtype_to_tensor_dtype(DTYPES[kind]))
            if kind
            else onnx.ValueInfoProto(name=name)
            for name, kind in outputs
            if name
        ]
        made = helper.make_node(
            self.op,
            [name for name, _ in words(self.inputs)],
            [name for name, _ in outputs],
            name=self.op,
            domain=self.domain,
            **self.attributes,
        )
        constants = {name: np.asarray(array) for name, array in self.constants.items()}
        domains = {self.domain: 1} if self.domain else {}
        return make_model([made], inputs, results, constants, opset=self.version, domains=domains)

    def feeds(self, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return random numbers for float inputs, and ones for others."""
        rng, given, feeds = np.random.default_rng(0), self.values(sizes), {}
        for name, kind in words(self.inputs):
            if kind:
                shape = [sizes[d] if isinstance(d, str) else d for d in dims(kind)]
                array = rng.random(shape) if kind[0] in "fh" else np.ones(shape)
                feeds[name] = np.asarray(given.get(name, array)).astype(DTYPES[kind[0]])
        return feeds

    def __str__(self) -> str:
        marks = " ".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.domain or 'ai.onnx'} {self.op}: {self.inputs} {marks}"


def words(text: str) -> list[tuple[str, str]]:
    """Return pairs of a name ("" if omitted) and the text behind "="."""
    pairs = [word.partition("=") for word in text.split()]
    return [("" if name == "-" else name, kind) for name, _, kind in pairs]


def dims(kind: str) -> list[str | int]:
    return [int(d) if d.isdigit() else d for d in kind[2:].split(",") if d]


def case(
    op: str,
    inputs: str,
    outputs: str = "y",
    constants: Mapping[str, Any] | None = None,
    values: Values = lambda _: {},
    domain: str = CONTRIB,
    version: int = 17,
    **attributes: Any,
) -> Case:
    return Case(op, inputs, outputs, constants or {}, attributes, values, domain, version)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random(shape, dtype=np.float32)


def ones(dtype: str, *shape: int) -> np.ndarray:
    return np.ones(shape, dtype)


def bert_model(layers: int = 2) -> onnx.ModelProto:
    """Return ids, mask, kinds int64 (B, T) -> y float32 (B, T, 8), as exporters write it."""
    nodes, constants = [], {
        "heads": np.array([0, 0, 2, 4]), "joined": np.array([0, 0, 8]), "first": np.array([1]),
        "second": np.array([2]), "one": np.float32(1), "low": np.float32(-1e4),
        "root": np.float32(2), "sqrt2": np.float32(2**0.5), "half": np.float32(0.5),
    }  # fmt: skip

    def add(op: str, inputs: str, output: str, **attributes) -> str:
        nodes.append(node(op, inputs, output, output, **attributes))
        return output

    def weight(name: str, *shape: int) -> str:
        constants[name] = weights(*shape, seed=len(constants))
        return name

    def dense(x: str, name: str, size_in: int, size_out: int) -> str:
        product = add("MatMul", f"{x} {weight(f'{name}_w', size_in, size_out)}", f"{name}_m")
        return add("Add", f"{product} {weight(f'{name}_b', size_out)}", name)

    def normalised(x: str, name: str) -> str:
        operands = f"{x} {weight(f'{name}_g', 8)} {weight(f'{name}_b', 8)}"
        return add("LayerNormalization", operands, name, axis=-1)

    add("Unsqueeze", "mask first", "mask1")
    add("Cast", add("Unsqueeze", "mask1 second", "mask2"), "mask3", to=TensorProto.FLOAT)
    add("Mul", f"{add('Sub', 'one mask3', 'hidden')} low", "bias")
    words = add("Gather", f"{weight('words', 9, 8)} ids", "embedded")
    kinds = add("Gather", f"{weight('kinds', 2, 8)} kind", "of_kind")
    x = normalised(add("Add", f"{words} {kinds}", "sum"), "x")
    for i in range(layers):
        q, k, v = (add("Reshape", f"{dense(x, f'{p}{i}', 8, 8)} heads", f"{p}{i}_h") for p in "qkv")
        q, v = (add("Transpose", part, f"{part}_t", perm=[0, 2, 1, 3]) for part in (q, v))
        k = add("Transpose", k, f"{k}_t", perm=[0, 2, 3, 1])
        scores = add("Div", f"{add('MatMul', f'{q} {k}', f'qk{i}')} root", f"scaled{i}")
        scores = add("Softmax", add("Add", f"{scores} bias", f"masked{i}"), f"soft{i}", axis=-1)
        mixed = add("MatMul", f"{scores} {v}", f"mixed{i}")
        mixed = add("Transpose", mixed, f"back{i}", perm=[0, 2, 1, 3])
        out = dense(add("Reshape", f"{mixed} joined", f"joined{i}"), f"out{i}", 8, 8)
        x = normalised(add("Add", f"{out} {x}", f"attended{i}"), f"first{i}")
        up = dense(x, f"up{i}", 8, 32)
        erf = add("Erf", add("Div", f"{up} sqrt2", f"erf_x{i}"), f"erf{i}")
        gelu = add("Mul", f"{up} {add('Add', f'{erf} one', f'shifted{i}')}", f"double{i}")
        down = dense(add("Mul", f"{gelu} half", f"gelu{i}"), f"down{i}", 32, 8)
        x = normalised(add("Add", f"{down} {x}", f"fed{i}"), f"second{i}")
    inputs = [value(name, ["B", "T"], TensorProto.INT64) for name in ("ids", "mask", "kind")]
    return make_model(nodes, inputs, [value(x, ["B", "T", 8])], constants)
