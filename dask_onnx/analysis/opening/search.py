"""The search for a way to write every node of a graph for any number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.opening.constants import Constants, spread
from dask_onnx.analysis.opening.draft import Draft, Mark, NotOpenedError
from dask_onnx.analysis.opening.fixes import alternatives
from dask_onnx.analysis.opening.site import Alternative, Site

_MOST_RETREATS = 200
"""How often a choice is taken back before a graph is given up."""


@dataclass(slots=True)
class _Choice:
    """A node that could have been written in another way."""

    position: int
    site: Site
    rest: list[Alternative]
    mark: Mark
    pattern: object
    blame: set[int] = field(default_factory=set)
    """Nodes whose choices led to what failed behind this one."""


class Rewriting:
    """The search for a way to write every node, which takes back choices that lead nowhere."""

    def __init__(self, draft: Draft, constants: Constants) -> None:
        self.draft, self.constants = draft, constants
        self.order: Sequence[int] = sorted(draft.facts.live)
        self.renamed: dict[str, str] = {}
        self._chosen: dict[object, object] = {}
        """What turned out right where several ways seemed possible, by pattern."""
        self._choices: list[_Choice] = []
        self._names = {node.name for node in draft.facts.nodes}

    def run(self) -> None:
        """Write all nodes.

        Raises
        ------
        NotOpenedError
            The first node that was in the way.
        """
        position, first, retreats = 0, None, 0
        pending: _Choice | None = None
        while position <= len(self.order):
            error = self._write(position, pending)
            if error is None:
                position, pending = position + 1, None
                continue
            first, retreats = first or error, retreats + 1
            pending = self._retreat(position, pending)
            if pending is None or retreats > _MOST_RETREATS:
                raise first
            position = pending.position

    def _write(self, position: int, pending: _Choice | None) -> NotOpenedError | None:
        """Write the node at a position in the first way that works; what spoke against the others
        if none does."""
        if position == len(self.order):
            return self._finish()
        if pending is None:
            site = Site(self.draft, self.constants, self.order[position])
            try:
                ways = alternatives(site)
            except NotOpenedError as refused:
                return refused
            pattern = (site.facts.op_type, frozenset(way.label for way in ways))
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
            if len(pending.rest) or pending.blame:
                self._chosen[pending.pattern] = way.label
                self._choices.append(pending)
            return None
        return error or NotOpenedError(pending.site.name, Kind.OPAQUE, "no way left")

    def _named(self, error: NotOpenedError, node: str) -> NotOpenedError:
        """The error with a node of the original graph."""
        if error.node in self._names:
            return error
        return NotOpenedError(node, error.kind, error.how)

    def _retreat(self, position: int, pending: _Choice | None) -> _Choice | None:
        """Go back to the last choice that the failure at a position may rest on."""
        facts, deps = self.draft.facts, self.draft.dep
        if position == len(self.order):
            outputs = [name for name in facts.outputs if not _is_rows(deps(name))]
            reads: Sequence[str] = [n for n in outputs if deps(n).kind != Kind.FREE]
        else:
            reads = facts.nodes[self.order[position]].reads
        blame = set(facts.ancestors(reads)) | (pending.blame if pending is not None else set())
        while self._choices:
            choice = self._choices.pop()
            if self.order[choice.position] in blame and choice.rest:
                choice.blame |= blame
                self.draft.roll_back(choice.mark)
                return choice
            if self.order[choice.position] in blame:
                blame |= choice.blame
        return None

    def _finish(self) -> NotOpenedError | None:
        """Check the outputs, and repeat those that do not depend on the rows."""
        draft = self.draft
        mark = draft.mark()
        for name in draft.facts.outputs:
            dep = draft.dep(name)
            if _is_rows(dep):
                continue
            shape = draft.exported_shape(name)
            # One row of a constant is joined to others; several may be anything.
            is_row = dep.kind == Kind.FREE and shape and shape[0] == draft.rows == 1
            try:
                if not is_row:
                    how = "an output without rows of its own"
                    raise NotOpenedError(name, max(dep.kind, Kind.LENGTH), how)
                self.renamed[name] = spread(draft, self.constants, name, (0, 1, 1), name)
            except NotOpenedError as refused:
                draft.roll_back(mark)
                self.renamed.clear()
                return refused
        return None


def _is_rows(dep: Dependence) -> bool:
    """Whether an output has one block for each row, and nothing else, on an axis."""
    return dep.is_own and (dep.is_uniform or (dep.outer, dep.inner) == (1, 1))
