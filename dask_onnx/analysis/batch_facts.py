"""Facts of a model's batch: which axes carry rows, and which nodes make rows depend on each other.

Plain data, made by `batch.find_batch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dask_onnx.analysis.axes.dependence import Kind


@dataclass(frozen=True, slots=True)
class Blocker:
    """The reason why an output cannot be cut along a candidate batch axis."""

    output: str
    """Name of the output."""
    axis: tuple[str, int]
    """The candidate's first input, and the axis of that input."""
    node: str
    """Name of the node that makes rows depend on each other."""
    op_type: str
    """Operator of that node; empty where no node is known."""
    kind: Kind
    """Dependence of the output on the positions of the axis."""
    how: str
    """The effect of the node on the axis, in words; may be empty."""

    def __str__(self) -> str:
        name, axis = self.axis
        operator = f" ({self.op_type})" if self.op_type else ""
        detail = f", {self.how}" if self.how else ""
        return (
            f"axis {axis} of input {name!r} is {self.kind.label} at node {self.node!r}{operator}"
            f"{detail}"
        )


@dataclass(frozen=True, slots=True)
class ExportedRows:
    """A number of rows that a graph was exported for, in its inputs or in constants inside.

    It is a proven number of rows if no node and no output contradicts it.
    """

    rows: int
    """The number."""
    axes: Mapping[str, int] = field(default_factory=dict)
    """Axis of the rows by input; inputs that are not listed have none."""
    output_axes: Mapping[str, int | None] = field(default_factory=dict)
    """Axis of the rows by output of the graph, as proven; empty without a proof."""
    is_open: bool = False
    """True if the inputs declare an open number, and a constant inside names this one."""
    conflict: str = ""
    """For an open number: the node that takes this number only, in words."""
    mixing: tuple[str, ...] = ()
    """Names of the nodes that would make rows depend on each other."""
    opaque: tuple[str, ...] = ()
    """Names of the nodes behind which the position of the rows is unknown."""
    lost: tuple[str, ...] = ()
    """Names of the outputs whose size does not grow with the number of rows."""

    @property
    def is_proven(self) -> bool:
        """True if rows are independent, and any number of them gives as many output rows."""
        return not (self.mixing or self.opaque or self.lost)


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """The batch axes of a model's inputs and outputs, and the nodes that make rows dependent."""

    input_axes: Mapping[str, int | None]
    """Input to its batch axis; None for an input that every run gets unchanged."""
    fixed_rows: int | None
    """The batch size that the graph was exported with; None where it is open, or not proven to be a
    number of independent rows."""
    output_axes: Mapping[str, int | None]
    """Output to its batch axis; None where it has none."""
    sizes: Mapping[str, tuple[int | float, ...] | None]
    """Output to its shape for one row, NaN on axes whose size depends on data; None for an unknown
    rank."""
    random: tuple[str, ...] = ()
    """Names of the nodes that draw random numbers."""
    unseeded: tuple[str, ...] = ()
    """Names of the random nodes without a seed, or whose kernel continues its sequence from run to
    run: a repeated task gives other numbers."""
    blockers: tuple[Blocker, ...] = ()
    """The reasons why rows are not proven to be independent, at most one for each output."""
    coupled: tuple[str, ...] = ()
    """Names of the nodes that quantize by a statistic over all rows of a run."""
    exported: ExportedRows | None = None
    """The common size of axis 0, where no batch axis is open; `fixed_rows` is set if it is proven
    to be a number of rows."""
    likely_axes: Mapping[str, int | None] = field(default_factory=dict)
    """Input to its likely batch axis, proven or not: an open axis 0, or one of the same symbol."""
    is_declared: bool = False
    """True if the caller declared rows independent; `blockers` then holds what the graph does not
    prove."""

    @property
    def is_proven(self) -> bool:
        """True if rows may be cut apart: proven by the graph, or declared by the caller."""
        return self.is_declared or not self.blockers

    @property
    def dependent(self) -> tuple[str, ...]:
        """Names of the nodes whose result for one row depends, or may depend, on other rows."""
        known = (blocker.node for blocker in self.blockers if blocker.kind != Kind.OPAQUE)
        return tuple(dict.fromkeys([*known, *self.coupled]))

    @property
    def opaque(self) -> tuple[str, ...]:
        """Names of the nodes behind which the position of the rows is unknown."""
        return tuple(dict.fromkeys(b.node for b in self.blockers if b.kind == Kind.OPAQUE))

    def whole(self, sizes: Mapping[str, tuple[int | float, ...] | None]) -> BatchFacts:
        """Return the facts of a run that is not cut: no batch axes, and outputs of these sizes.

        Parameters
        ----------
        sizes : mapping of output to shape
            NaN on axes whose size depends on data; None for an unknown rank.
        """
        return replace(
            self,
            fixed_rows=None,
            input_axes=dict.fromkeys(self.input_axes),
            output_axes=dict.fromkeys(self.output_axes),
            sizes=sizes,
        )
