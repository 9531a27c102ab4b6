"""Result of `Model.axes`: how each output depends on each axis of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.propagate import Specs, propagate
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.core.formatting import printable
from dask_onnx.core.specs import Dim, TensorSpec


@dataclass(frozen=True, slots=True)
class AxisFact:
    """Dependence of one value on one axis of the inputs; `AxisTable` explains the kinds."""

    inputs: tuple[tuple[str, int], ...]
    """Input name and axis number, for each input that has the axis; several share it by a symbol.
    """
    symbol: Dim
    """Declared size of the axis: a number, a symbol such as "N", or None if the model has none."""
    value: str
    """Name of the output or intermediate value."""
    kind: str
    """Kind of the dependence, such as "independent"; see `AxisTable`."""
    axis: int | None
    """Axis of `value` along which the positions lie; None if there is none."""
    offset: float
    """First input position that element 0 of `axis` reads; negative where it reads padding."""
    stride: float
    """Input positions from the first one that an element reads to the first of the next."""
    extent: float
    """Input positions that one element reads; inf if it reads all, or an unknown number."""
    node: str
    """Name of the ONNX node that decides the kind; empty for "free" and "independent"."""
    how: str
    """Operation of that node in a few words, such as "softmax" or "recurrence". "position" stands
    for an operand that has one element for each position and does not carry the axis."""

    @property
    def is_independent(self) -> bool:
        """True if the inputs can be cut along the axis and the value concatenated, exactly."""
        return self.kind == "independent" and self.axis is not None


@dataclass(frozen=True)
class AxisTable:
    """Dependence of each output on each axis of the inputs; ``print`` shows it as a table.

    Each row is an `AxisFact`. Iterate over the table, or look up one axis with `of`:

    >>> table = model.axes()
    >>> print(table)
    input axis  size  value  kind         axis  reads  decided by
    x[0]        N     y      independent  0     1
    x[1]        4     y      contracted   -     all    MatMul_0 (matrix product)
    >>> table.of("x", 0).is_independent
    True

    The column "reads" is the number of input positions that one element reads: "1", "all", "-" for
    none, and for a window "extent from stride o + offset", where o is the element's index.

    The *positions* of an axis are its indices, 0 to size - 1. The kind says which positions one
    element of the value reads, and so whether the axis can be cut into pieces that are computed
    separately.

    ``"free"``
        None: the value does not depend on the axis. Example: an output computed from weights or
        from other inputs only.
    ``"independent"``
        Its own position only: cutting the inputs along the axis, and concatenating the value along
        its `axis`, changes nothing. Example: the batch axis of a ``MatMul`` with a weight matrix.
    ``"coupled"``
        As "independent", but quantisation parameters are computed over all positions, so pieces
        differ by rounding. Example: the batch axis behind ``DynamicQuantizeLinear``.
    ``"window"``
        A bounded range of positions, given by the fact's `offset`, `stride` and `extent`. Example:
        the height of an image under a 3x3 ``Conv``.
    ``"reduced"``
        All positions, through a statistic that can be combined from partial results. Example: the
        axis of a ``ReduceMean``, or of a ``Softmax``.
    ``"contracted"``
        All positions, through a sum of products. Example: the inner axis of a ``MatMul``, or the
        input channels of a ``Conv``.
    ``"factored"``
        The positions in an order that a reshape changed, or in several blocks. Example: ``Reshape``
        of an axis N of shape (N, 4) to (3, -1), or ``Concat`` of two inputs along their axis N.
    ``"gathered"``
        Positions chosen by indices, values or layout. Example: ``Gather`` along the axis, ``TopK``
        along it, or ``Concat`` of other rows along it.
    ``"scanned"``
        All positions up to its own, in order. Example: the time axis of an ``LSTM``, or the axis of
        a ``CumSum``.
    ``"paired"``
        All pairs of positions. Example: the token axis of self-attention.
    ``"length"``
        The number of positions, or the element's own index. Example: the token axis behind the
        ``Add`` of a table of position embeddings.
    ``"opaque"``
        Not known, so anything is possible. Example: any axis behind an operator of a custom domain
        that declares nothing.
    """

    facts: tuple[AxisFact, ...]
    """Facts in order of the inputs' axes and, for each axis, of the values."""

    def __iter__(self) -> Iterator[AxisFact]:
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)

    def of(self, name: str, axis: int, value: str | None = None) -> AxisFact:
        """Return the fact of one axis of one input.

        Parameters
        ----------
        name : str
            Name of the input.
        axis : int
            Axis of that input; not negative.
        value : str, optional
            Name of the output; by default the first one.

        Raises
        ------
        KeyError
            The table has no such axis or value. Axes of size 1 are left out.
        """
        for fact in self.facts:
            if (name, axis) in fact.inputs and value in (None, fact.value):
                return fact
        raise KeyError((name, axis, value))

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table as printable strings: a header, and one row for each fact."""
        header = ("input axis", "size", "value", "kind", "axis", "reads", "decided by")
        return [header, *(tuple(map(printable, _row(fact))) for fact in self.facts)]

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
    """Return the groups of input axes that must be cut together; axes of size 1 are left out.

    Axes declared with the same symbol form a group, each other axis a group of its own. Inputs of
    unknown rank, sequences and optionals have no axes here.

    Parameters
    ----------
    inputs : sequence of TensorSpec
    rows : mapping of input to axis, optional
        Axes that carry the rows; they form the first group, whatever their symbols are.

    Returns
    -------
    list of (size, mapping of input to axis)
        Size as declared: a number, a symbol or None.
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
    """Return the table of facts of each group of input axes at each of `values`.

    Parameters
    ----------
    facts : GraphFacts
    groups : sequence of (size, mapping of input to axis)
        Groups as `axis_groups` returns them.
    specs_for : function of a group's mapping
        Returns the specs of all values at definite sizes of the inputs, for which the facts hold.
    values : sequence of str
        Names of outputs or intermediate values.
    custom : mapping of (domain, op type) to axes, optional
        Axes that custom operators declare, see `CustomAxes`.
    """
    rows = []
    for symbol, seeds in groups:
        deps = propagate(facts, specs_for(seeds), seeds, custom)
        rows += [_fact(facts, symbol, seeds, value, deps.get(value, FREE)) for value in values]
    return AxisTable(tuple(rows))


def axis_facts(
    facts: GraphFacts,
    specs: Specs,
    seeds: Mapping[str, int],
    values: Sequence[str],
    custom: CustomAxes | None = None,
) -> dict[str, AxisFact]:
    """Return the facts of one source axis by value; see `propagate` for the parameters."""
    deps = propagate(facts, specs, seeds, custom)
    return {value: _fact(facts, None, seeds, value, deps.get(value, FREE)) for value in values}


def _fact(
    facts: GraphFacts, symbol: Dim, seeds: Mapping[str, int], value: str, dep: Dependence
) -> AxisFact:
    producer = facts.producer.get(value)
    dep = dep.of_whole_positions("" if producer is None else facts.nodes[producer].name)
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
