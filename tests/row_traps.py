"""Small graphs at the edge of what can be proven of rows, in ONNX's textual syntax.

Each says whether its rows may be cut apart. `test_row_traps` holds that against ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser

Draw = Callable[[int, np.random.Generator], np.ndarray]
"""Function of a number of rows that draws an input."""

COMMON = """
  n = Shape<start=0,end=1>(x)  count = Squeeze(n)  real = Cast<to=1>(n)
  zero = Constant<value_ints=[0]>()  one = Constant<value_ints=[1]>()  o = Squeeze(one)
  z = Squeeze(zero)  far = Constant<value_ints=[1000]>()  back = Constant<value_ints=[-1]>()
"""
"""Values that every graph may use: the number of rows of x as a vector, as a scalar and as a float,
and constants."""


def _sizes(shape: tuple[int | str, ...], rows: int) -> list[int]:
    return [rows if n == "n" else 2 * rows if n == "2n" else int(n) for n in shape]


def real(*shape: int | str) -> Draw:
    """Return a draw of float32; "n" stands for the number of rows, "2n" for twice that."""
    return lambda rows, rng: rng.standard_normal(_sizes(shape, rows)).astype(np.float32)


def whole(high: int | str, *shape: int | str, dtype: str = "i8") -> Draw:
    """Return a draw of integers below `high`."""
    return lambda rows, rng: rng.integers(0, _sizes((high,), rows)[0], _sizes(shape, rows)).astype(
        dtype
    )


def words(*shape: int | str) -> Draw:
    """Return a draw of strings."""
    return lambda rows, rng: np.array(["p", "q r"], object)[rng.integers(0, 2, _sizes(shape, rows))]


@dataclass(frozen=True)
class Trap:
    """One graph."""

    name: str
    interface: str
    """Inputs and outputs with their types, in ONNX's syntax."""
    body: str
    """Nodes; those of `COMMON` come first."""
    inputs: dict[str, Draw]
    is_cut: bool
    """True if rows are proven to be independent."""
    opset: int = 18

    def model(self) -> onnx.ModelProto:
        """Return the model."""
        microsoft = ', "com.microsoft" : 1' if "com.microsoft." in self.body else ""
        head = f'<ir_version: 10, opset_import: ["" : {self.opset}{microsoft}]>'
        return onnx.parser.parse_model(f"{head}\ng {self.interface} {{ {COMMON} {self.body} }}")


SAME = "(float[N,3] x) => (float[N,3] y)"
"""Interface of a graph with one input and one output of the same shape."""
WIDE = "(float[N,9] x) => (float[N,M] y)"
"""Interface of a graph whose output has another number of columns."""


def whole_trap(name: str, interface: str, body: str, opset: int = 18, **inputs: Draw) -> Trap:
    """Return a graph whose rows must stay together; x has three columns by default."""
    return Trap(name, interface, body, inputs or {"x": real("n", 3)}, False, opset)


def cut_trap(name: str, interface: str, body: str, opset: int = 18, **inputs: Draw) -> Trap:
    """Return a graph whose rows are proven to be independent."""
    return Trap(name, interface, body, inputs or {"x": real("n", 3)}, True, opset)
