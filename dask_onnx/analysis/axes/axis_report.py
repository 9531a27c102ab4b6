"""What `model.axes()` says: every axis of every input, and what becomes of it at each output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.core.specs import Dim, TensorSpec

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class AxisFact:
    """How one value depends on one axis of the inputs."""

    inputs: tuple[tuple[str, int], ...]
    """The axis: input and number, for all inputs that share it by a symbol."""
    symbol: Dim
    """Its declared size: a number, a symbol, or None."""
    value: str
    """Name of the output or intermediate value."""
    kind: str
    """"free", "independent", "coupled", "window", "reduced", "contracted", "factored", "gathered",
    "scanned", "paired", "length" or "opaque"."""
    axis: int | None
    """Axis of `value` along which the positions lie; None for none."""
    offset: float
    """First input position that output 0 reads, relative to position 0."""
    stride: float
    """Input positions from one output to the next."""
    extent: float
    """Input positions that one output reads; inf where it reads all, or it is not known."""
    node: str
    """Name of the node that decides, if `kind` is neither "free" nor "independent"."""
    how: str
    """What that node does, in a word or two."""

    @property
    def is_independent(self) -> bool:
        """Whether cutting the inputs along the axis, and joining the value, changes nothing."""
        return self.kind == "independent" and self.axis is not None


@dataclass(frozen=True)
class AxisTable:
    """The facts of all axes; prints as a table."""

    facts: tuple[AxisFact, ...]

    def __iter__(self) -> Iterator[AxisFact]:
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)

    def of(self, name: str, axis: int, value: str | None = None) -> AxisFact:
        """Return the fact of one axis of one input, at `value` or else the first output.

        Raises
        ------
        KeyError
            No such axis or value.
        """
        for fact in self.facts:
            if (name, axis) in fact.inputs and value in (None, fact.value):
                return fact
        raise KeyError((name, axis, value))

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table as text: a header, and a row for each fact."""
        header = ("input axis", "size", "value", "kind", "axis", "reads", "decided by")
        return [header, *map(_row, self.facts)]

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
        return "\n".join(lines)


def _row(fact: AxisFact) -> tuple[str, ...]:
    reads = "-"
    if fact.kind == "window":
        reads = f"{fact.extent:g} from {fact.stride:g} o {fact.offset:+g}"
    elif fact.kind in ("independent", "coupled"):
        reads = "1"
    elif fact.kind != "free":
        reads = "all"
    decided = f"{fact.node} ({fact.how})" if fact.how and fact.node else fact.node
    return (
        ", ".join(f"{name}[{axis}]" for name, axis in fact.inputs),
        "?" if fact.symbol is None else str(fact.symbol),
        fact.value,
        fact.kind,
        "-" if fact.axis is None else str(fact.axis),
        reads,
        decided,
    )


def axis_groups(
    inputs: Sequence[TensorSpec], rows: Mapping[str, int] | None = None
) -> list[tuple[Dim, dict[str, int]]]:
    """Return the axes of inputs that have more than one element, those of one symbol together.

    Parameters
    ----------
    rows : mapping of input to axis, optional
        Axes that carry rows together, whatever their symbols are.
    """
    found: dict[object, tuple[Dim, dict[str, int]]] = {}
    if rows:
        first = next(spec for spec in inputs if spec.name in rows)
        symbol = first.shape[rows[first.name]] if first.shape else None
        found["rows"] = (symbol, dict(rows))
    for spec in inputs:
        if spec.kind is not None or spec.shape is None:
            continue
        for axis, dim in enumerate(spec.shape):
            if dim == 1 or (rows or {}).get(spec.name) == axis:
                continue
            alone: object = (spec.name, axis)
            key: object = dim if isinstance(dim, str) else alone
            if key in found and spec.name in found[key][1]:
                key = alone
            found.setdefault(key, (dim, {}))[1][spec.name] = axis
    return list(found.values())


def axis_table(
    facts: GraphFacts,
    groups: Sequence[tuple[Dim, Mapping[str, int]]],
    specs_for: Callable[[Mapping[str, int]], Specs],
    values: Sequence[str],
    custom: CustomAxes | None = None,
) -> AxisTable:
    """Return the facts of groups of input axes at `values`.

    Parameters
    ----------
    groups : sequence of (size, axes), such as `axis_groups` returns
    specs_for : function of the axes
        Every value's spec at definite sizes of the inputs, for which the facts hold.
    """
    rows = []
    for symbol, seeds in groups:
        deps = propagate(facts, specs_for(seeds), seeds, custom)
        rows += [_fact(symbol, seeds, value, deps.get(value, FREE)) for value in values]
    return AxisTable(tuple(rows))


def axis_facts(
    facts: GraphFacts,
    specs: Specs,
    seeds: Mapping[str, int],
    values: Sequence[str],
    custom: CustomAxes | None = None,
) -> dict[str, AxisFact]:
    """Return the facts of one axis, which several inputs may share, by value."""
    deps = propagate(facts, specs, seeds, custom)
    return {value: _fact(None, seeds, value, deps.get(value, FREE)) for value in values}


def _fact(symbol: Dim, seeds: Mapping[str, int], value: str, dep: Dependence) -> AxisFact:
    kind = dep.kind.label
    if dep.kind == Kind.INDEPENDENT and dep.coupled:
        kind = "coupled"
    node = dep.coupled if kind == "coupled" else dep.node
    reads_all = dep.is_broken
    return AxisFact(
        inputs=tuple(seeds.items()),
        symbol=symbol,
        value=value,
        kind=kind,
        axis=dep.axis,
        offset=0.0 if reads_all else float(dep.window.offset),
        stride=1.0 if reads_all else float(dep.window.stride),
        extent=float("inf") if reads_all else float(dep.window.extent),
        node=node,
        how=dep.how,
    )
