"""Search for a rewrite of every node of a graph for any number of rows.

Depth-first with conflict-directed backjumping (P. Prosser, "Hybrid algorithms for the constraint
satisfaction problem", 1993): a failure returns to the last choice among the ancestors of the node
that failed, not to the last choice made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.opening.constants import Constants, repeat_row
from dask_onnx.analysis.opening.draft import Draft, Mark, NotOpenedError
from dask_onnx.analysis.opening.fixes import alternatives
from dask_onnx.analysis.opening.site import Alternative, Site
from dask_onnx.modelio.operator_names import operator_name

_MAX_BACKTRACKS = 200
"""Choices revised before the graph is given up."""


@dataclass(slots=True)
class _Choice:
    """A node for which untried alternatives remain."""

    position: int
    """Position of the node in the order of writing."""
    site: Site
    rest: list[Alternative]
    """Alternatives not yet tried."""
    mark: Mark
    """State of the draft before the node."""
    pattern: object
    """Operator and labels of all alternatives."""
    conflicts: set[int] = field(default_factory=set)
    """Conflict set: nodes whose choices may have caused the failures after this choice."""


class Rewriting:
    """Search for an alternative of every live node such that all outputs have independent rows.

    Parameters
    ----------
    draft : Draft
        Empty draft, which the search fills.
    constants : Constants
    """

    def __init__(self, draft: Draft, constants: Constants) -> None:
        self.draft, self.constants = draft, constants
        self.order: Sequence[int] = sorted(draft.facts.live)
        """Indices of the nodes to write."""
        self.renamed: dict[str, str] = {}
        """Outputs that do not depend on the rows, and the values that repeat them."""
        self._chosen: dict[object, object] = {}
        """Label of the alternative used last, by pattern."""
        self._choices: list[_Choice] = []
        self._names = {node.name for node in draft.facts.nodes}

    def run(self) -> None:
        """Write all nodes.

        Raises
        ------
        NotOpenedError
            No combination of alternatives works; names the node that failed first.
        """
        position, first, backtracks = 0, None, 0
        pending: _Choice | None = None
        while position <= len(self.order):
            error = self._write(position, pending)
            if error is None:
                position, pending = position + 1, None
                continue
            first, backtracks = first or error, backtracks + 1
            pending = self._backtrack(position, pending)
            if pending is None or backtracks > _MAX_BACKTRACKS:
                raise first
            position = pending.position

    def _write(self, position: int, pending: _Choice | None) -> NotOpenedError | None:
        """Write the node at a position by the first alternative that works.

        Returns the first alternative's error if none works; behind the last node, checks outputs.
        """
        if position == len(self.order):
            return self._finish()
        if pending is None:
            site = Site(self.draft, self.constants, self.order[position])
            try:
                ways = alternatives(site)
            except NotOpenedError as refused:
                return refused
            pattern = (operator_name(site.facts), frozenset(way.label for way in ways))
            ways.sort(key=lambda way: way.label != self._chosen.get(pattern, way.label))
            pending = _Choice(position, site, ways, self.draft.mark(), pattern)
        error: NotOpenedError | None = None
        while pending.rest:
            way = pending.rest.pop(0)
            pending.site.reset()
            try:
                way.write()
            except NotOpenedError as refused:
                error = error or self._named(refused, pending.site.name)
                self.draft.roll_back(pending.mark)
                continue
            if len(pending.rest) or pending.conflicts:
                self._chosen[pending.pattern] = way.label
                self._choices.append(pending)
            return None
        return error or NotOpenedError(pending.site.name, Kind.OPAQUE, "no alternative left")

    def _named(self, error: NotOpenedError, node: str) -> NotOpenedError:
        """Return the error, with `node` in place of a node that the rewriting added."""
        if error.node in self._names:
            return error
        return NotOpenedError(node, error.kind, error.how)

    def _backtrack(self, position: int, pending: _Choice | None) -> _Choice | None:
        """Roll back to the last choice that may have caused the failure at a position, if any."""
        facts, deps = self.draft.facts, self.draft.dep
        if position == len(self.order):
            outputs = [name for name in facts.outputs if not _is_rows(deps(name))]
            reads: Sequence[str] = [n for n in outputs if deps(n).kind != Kind.FREE]
        else:
            reads = facts.nodes[self.order[position]].reads
        conflicts = set(facts.ancestors(reads)) | (
            pending.conflicts if pending is not None else set()
        )
        while self._choices:
            choice = self._choices.pop()
            if self.order[choice.position] in conflicts and choice.rest:
                choice.conflicts |= conflicts
                self.draft.roll_back(choice.mark)
                return choice
            if self.order[choice.position] in conflicts:
                conflicts |= choice.conflicts
        return None

    def _finish(self) -> NotOpenedError | None:
        """Check all outputs, and repeat for each row those that do not depend on the rows."""
        draft = self.draft
        mark = draft.mark()
        for name in draft.facts.outputs:
            dep = draft.dep(name)
            if _is_rows(dep):
                continue
            shape = draft.exported_shape(name)
            # A leading size of 1 is a single row; an equal number of several rows may be chance.
            is_row = dep.kind == Kind.FREE and shape and shape[0] == draft.rows == 1
            try:
                if not is_row:
                    how = "output without one entry for each row"
                    raise NotOpenedError(name, max(dep.kind, Kind.LENGTH), how)
                self.renamed[name] = repeat_row(draft, self.constants, name, (0, 1, 1), name)
            except NotOpenedError as refused:
                draft.roll_back(mark)
                self.renamed.clear()
                return refused
        return None


def _is_rows(dep: Dependence) -> bool:
    """Return whether an axis of an output holds exactly one entry for each row."""
    return dep.is_independent and (dep.is_uniform or (dep.outer, dep.inner) == (1, 1))
