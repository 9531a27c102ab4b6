"""Generator of random graphs of about 70 operators that run at two sizes of one dynamic axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from axes_truth import CannotRunError, Runner, names_read
from builders import make_model
from onnx import helper

from dask_onnx.analysis.row_probes import PROBES

SIZES = (6, 4)
"""Numbers of positions at which every node of a graph runs."""
MAX_ELEMENTS = 4000
"""Elements of the largest value of a graph."""
_MAX_AT_PROBE = 2_000_000
"""Elements of a value at the larger number of rows that the analysis probes; ONNX's shape inference
takes hundreds of bytes for each element of a vector."""
_OPSETS = (12, 17, 21)
_MAX_TRIES = 60
"""Operators tried for one graph."""


class UnfitError(Exception):
    """An operator does not fit the values of the graph."""


@dataclass(frozen=True)
class Value:
    """A value of a graph, with its elements at both sizes."""

    name: str
    """Name of the value."""
    arrays: tuple[np.ndarray, np.ndarray]
    """Elements at each of `SIZES`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape at the larger size."""
        return self.arrays[0].shape

    @property
    def rank(self) -> int:
        """Number of axes."""
        return self.arrays[0].ndim

    @property
    def is_float(self) -> bool:
        """True for float32."""
        return self.arrays[0].dtype == np.float32

    @property
    def open_axes(self) -> list[int]:
        """Axes whose size depends on the number of positions."""
        small = self.arrays[1].shape
        return [i for i, size in enumerate(self.shape) if size != small[i]]

    @property
    def may_be_empty(self) -> bool:
        """True if extrapolation to one position leaves an axis without elements."""
        large, small = (np.array(array.shape) for array in self.arrays)
        at_one = small - (large - small) * (SIZES[1] - 1) / (SIZES[0] - SIZES[1])
        return bool((at_one < 1).any())


Operand = Value | np.ndarray | None
"""Input of a node: a value, a constant, or None if omitted."""
Operator = Callable[["Maker", Value], None]
"""Function that adds nodes behind a value to a graph."""


class Maker:
    """Graph that grows node by node; each node has run at both sizes.

    Parameters
    ----------
    seed : int
        Seed of all random choices.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.choice(_OPSETS))
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values: list[Value] = []
        self.inputs: dict[str, int] = {}
        """Dynamic axis by input."""
        self._names = 0

    # Random arguments of operators.

    def integer(self, low: int, high: int) -> int:
        """Return an integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def choice(self, options: Sequence[Any]) -> Any:
        """Return one of the options.

        Raises
        ------
        UnfitError
            There are none.
        """
        if not len(options):
            raise UnfitError
        return options[self.integer(0, len(options) - 1)]

    def chance(self, share: float) -> bool:
        """Return True with probability `share`."""
        return bool(self.rng.random() < share)

    def floats(self, *shape: int) -> np.ndarray:
        """Return float32 multiples of 1/4 from -2 to 2, whose sums are exact."""
        return (self.rng.integers(-8, 9, shape) / 4).astype(np.float32)

    def axis(self, value: Value, *, fixed: bool = False) -> int:
        """Return an axis; if `fixed`, one whose size does not depend on the positions."""
        axes = [i for i in range(value.rank) if not fixed or i not in value.open_axes]
        return int(self.choice(axes))

    def other(self, *, like: Value | None = None) -> Value:
        """Return a float value; if `like` is given, one of the same rank."""
        fit = [v for v in self.values if v.is_float and v.rank]
        fit = [v for v in fit if like is None or v.rank == like.rank]
        found: Value = self.choice(fit)
        return found

    def emit(
        self,
        op: str,
        *operands: Operand,
        outputs: int = 1,
        domain: str = "",
        captured: Sequence[Value] = (),
        keep: bool = True,
        **attributes: Any,
    ) -> list[Value]:
        """Add a node and return its outputs.

        Parameters
        ----------
        op : str
            Operator type.
        *operands : Value, array or None
            Inputs of the node.
        outputs : int
            Number of outputs.
        domain : str
        captured : sequence of Value
            Values that bodies of the node read.
        keep : bool
            True if later nodes may read the outputs.
        **attributes
            Attributes of the node.

        Raises
        ------
        UnfitError
            The node does not run at one of the sizes.
        """
        names, constants, read = [], {}, list(captured)
        for operand in operands:
            if isinstance(operand, Value):
                read.append(operand)
                names.append(operand.name)
            elif operand is None:
                names.append("")
            else:
                names.append(self._name("c"))
                constants[names[-1]] = operand
        made = [self._name("v") for _ in range(outputs)]
        proto = helper.make_node(op, names, made, f"{op}_{made[0]}", domain=domain, **attributes)
        values = self._run(proto, read, constants)
        self.nodes.append(proto)
        self.constants |= constants
        if keep:
            self.values += values
        return values

    def one(self, op: str, *operands: Operand, **options: Any) -> Value:
        """Add a node with one output and return the output."""
        return self.emit(op, *operands, **options)[0]

    def along(
        self, op: str, value: Operand, axes: Sequence[int], since: int, **options: Any
    ) -> Value:
        """Add a node with axes, an input from opset `since` on and an attribute before."""
        if self.opset < since:
            return self.one(op, value, axes=list(axes), **options)
        return self.one(op, value, np.array(axes, np.int64), **options)

    def size_of(self, value: Value, axis: int) -> Value:
        """Return the size of an axis as an int64 vector of one element."""
        shape = self.one("Shape", value, keep=False)
        return self.one("Gather", shape, np.array([axis]), axis=0, keep=False)

    def scalar(self, value: Value) -> Value:
        """Return a vector of one element as a scalar."""
        return self.along("Squeeze", value, [0], 13, keep=False)

    def _name(self, letter: str) -> str:
        self._names += 1
        return f"{letter}{self._names}"

    def _run(
        self, proto: onnx.NodeProto, read: Sequence[Value], constants: dict[str, np.ndarray]
    ) -> list[Value]:
        given = {value.name: value for value in read}
        model = make_model(
            [proto],
            [_declared(n, v.arrays[0].dtype, v.rank) for n, v in given.items()],
            [onnx.ValueInfoProto(name=name) for name in proto.output],
            constants,
            opset=self.opset,
            domains={"com.microsoft": 1},
        )
        try:
            runner = Runner(model, any_kernel=False)
            results = [runner({n: v.arrays[i] for n, v in given.items()}) for i in range(2)]
        except CannotRunError as error:
            raise UnfitError from error
        return [_usable(name, [np.asarray(r[name]) for r in results]) for name in proto.output]

    # The whole graph.

    def start(self) -> None:
        """Add one or two inputs with the same number of positions on a dynamic axis."""
        axis = 0 if self.chance(0.75) else None
        for name in ("x", "z")[: 2 if self.chance(0.4) else 1]:
            rank = self.integer(2, 4)
            place = self.integer(0, rank - 1) if axis is None else axis
            dims = [self.choice((1, 2, 3, 4, 4, 6)) for _ in range(rank)]
            arrays = [self.floats(*dims[:place], size, *dims[place + 1 :]) for size in SIZES]
            self.inputs[name] = place
            self.values.append(Value(name, (arrays[0], arrays[1])))

    def grow(self, operators: Sequence[Operator], count: int) -> None:
        """Add `count` operators, each behind one of the last values."""
        for _ in range(_MAX_TRIES):
            before = len(self.nodes), len(self.values)
            recent = self.values[-4:] if self.chance(0.8) else self.values
            try:
                value = self.choice([value for value in recent if value.rank])
                self.choice(operators)(self, value)
                count -= 1
            except UnfitError:
                del self.nodes[before[0] :], self.values[before[1] :]
            if not count:
                return

    def model(self, *, leaves_only: bool = False) -> onnx.ModelProto:
        """Return the graph with all values as outputs, or only those that no node reads."""
        by_name = {value.name: value for value in self.values}
        read = {name for node in self.nodes for name in names_read(node)}
        inputs = []
        for name, axis in self.inputs.items():
            dims: list[int | str] = list(by_name[name].shape)
            dims[axis] = "N"
            inputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))
        outputs = [
            helper.make_tensor_value_info(
                v.name, helper.np_dtype_to_tensor_dtype(v.arrays[0].dtype), None
            )
            for v in self.values
            if v.name not in self.inputs and not (leaves_only and v.name in read)
        ]
        constants = {name: array for name, array in self.constants.items() if name in read}
        return make_model(
            self.nodes, inputs, outputs, constants, opset=self.opset, domains={"com.microsoft": 1}
        )


def _declared(name: str, dtype: np.dtype[Any], rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(dtype), [None] * rank
    )


def _usable(name: str, arrays: Sequence[np.ndarray]) -> Value:
    """Return a value of a node's outputs.

    Raises
    ------
    UnfitError
        An output is empty, large or not finite.
    """
    for array in arrays:
        if not 0 < array.size <= MAX_ELEMENTS or array.ndim > 6:
            raise UnfitError
        if array.dtype.kind == "f" and not (np.abs(array) < 1e4).all():
            raise UnfitError
    large, small = (array.size for array in arrays)
    power = math.log(large / small) / math.log(SIZES[0] / SIZES[1])
    at_probe = small * (PROBES[1] / SIZES[1]) ** power
    if arrays[0].ndim != arrays[1].ndim or at_probe > _MAX_AT_PROBE:
        raise UnfitError
    value = Value(name, (arrays[0], arrays[1]))
    if value.may_be_empty:
        raise UnfitError  # kernels of ORT divide by the number of elements
    return value


def random_graph(seed: int, operators: Sequence[Operator]) -> Maker:
    """Return a graph of 3 to 12 operators."""
    maker = Maker(seed)
    maker.start()
    maker.grow(operators, maker.integer(3, 12))
    return maker
