"""Random graphs of about 70 operators that run at two sizes of one open axis."""

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
"""Numbers of positions that every node of a graph can run with."""
MOST_ELEMENTS = 4000
_MOST_AT_PROBE = 2_000_000
"""Elements for the larger number of rows that the analysis asks at: ONNX's inference takes
hundreds of bytes for each of a vector."""
_OPSETS = (12, 17, 21)
_TRIES = 60


class UnfitError(Exception):
    """An operator that cannot follow the values that there are."""


@dataclass(frozen=True)
class Value:
    """A value of a graph, with what it is at both sizes."""

    name: str
    arrays: tuple[np.ndarray, np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arrays[0].shape

    @property
    def rank(self) -> int:
        return self.arrays[0].ndim

    @property
    def is_float(self) -> bool:
        return self.arrays[0].dtype == np.float32

    @property
    def open_axes(self) -> list[int]:
        """Axes whose size depends on the number of positions."""
        small = self.arrays[1].shape
        return [i for i, size in enumerate(self.shape) if size != small[i]]

    @property
    def may_be_empty(self) -> bool:
        """Whether an axis that shrinks like this has no elements left for one position."""
        large, small = (np.array(array.shape) for array in self.arrays)
        at_one = small - (large - small) * (SIZES[1] - 1) / (SIZES[0] - SIZES[1])
        return bool((at_one < 1).any())


Operand = Value | np.ndarray | None
Operator = Callable[["Maker", Value], None]


class Maker:
    """A graph that grows node by node; every node has run at both sizes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.choice(_OPSETS))
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values: list[Value] = []
        self.inputs: dict[str, int] = {}
        """Input to its open axis."""
        self._names = 0

    # What operators are made with.

    def integer(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def choice(self, options: Sequence[Any]) -> Any:
        """Return one of some things."""
        if not len(options):
            raise UnfitError
        return options[self.integer(0, len(options) - 1)]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def floats(self, *shape: int) -> np.ndarray:
        """Return multiples of 1/4, so that sums of them are exact."""
        return (self.rng.integers(-8, 9, shape) / 4).astype(np.float32)

    def axis(self, value: Value, *, fixed: bool = False) -> int:
        """Return an axis, with `fixed` one that has the same size at both sizes."""
        axes = [i for i in range(value.rank) if not fixed or i not in value.open_axes]
        return int(self.choice(axes))

    def other(self, *, like: Value | None = None) -> Value:
        """Return some float value, with `like` one of the same rank."""
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
        captured : values that its bodies read
        keep : bool
            Whether later nodes may read the outputs.

        Raises
        ------
        UnfitError
            It cannot run at one of the sizes.
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
        """Add a node with one output and return that."""
        return self.emit(op, *operands, **options)[0]

    def along(
        self, op: str, value: Operand, axes: Sequence[int], since: int, **options: Any
    ) -> Value:
        """Add a node whose axes are an input from opset `since` on, before an attribute."""
        if self.opset < since:
            return self.one(op, value, axes=list(axes), **options)
        return self.one(op, value, np.array(axes, np.int64), **options)

    def size_of(self, value: Value, axis: int) -> Value:
        """Return the size of an axis as a vector of one int64."""
        shape = self.one("Shape", value, keep=False)
        return self.one("Gather", shape, np.array([axis]), axis=0, keep=False)

    def scalar(self, value: Value) -> Value:
        """Return a vector of one as a scalar."""
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

    # The whole.

    def start(self) -> None:
        """Add one or two inputs; the axis of the second has as many positions."""
        axis = 0 if self.chance(0.75) else None
        for name in ("x", "z")[: 2 if self.chance(0.4) else 1]:
            rank = self.integer(2, 4)
            place = self.integer(0, rank - 1) if axis is None else axis
            dims = [self.choice((1, 2, 3, 4, 4, 6)) for _ in range(rank)]
            arrays = [self.floats(*dims[:place], size, *dims[place + 1 :]) for size in SIZES]
            self.inputs[name] = place
            self.values.append(Value(name, (arrays[0], arrays[1])))

    def grow(self, operators: Sequence[Operator], count: int) -> None:
        """Add so many operators, each behind one of the last values."""
        for _ in range(_TRIES):
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
        """Return the graph with every value as an output, or those that no node reads."""
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
    """A value of what a node gave; unfit if it is empty, large or not finite."""
    for array in arrays:
        if not 0 < array.size <= MOST_ELEMENTS or array.ndim > 6:
            raise UnfitError
        if array.dtype.kind == "f" and not (np.abs(array) < 1e4).all():
            raise UnfitError
    large, small = (array.size for array in arrays)
    power = math.log(large / small) / math.log(SIZES[0] / SIZES[1])
    at_probe = small * (PROBES[1] / SIZES[1]) ** power
    if arrays[0].ndim != arrays[1].ndim or at_probe > _MOST_AT_PROBE:
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
