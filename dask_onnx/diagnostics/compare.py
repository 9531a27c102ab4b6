"""Differences between two plans, as text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dask_onnx.core.formatting import format_bytes, format_seconds, printable
from dask_onnx.planning.stages import StageGraph

_MOST_LINES = 20
"""Lines of each list."""
_MOST_NAMES = 3
"""Names of nodes that a line lists."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The facts about a plan that are compared."""

    model: str
    """Name of the model."""
    token: str
    """Content digest of the model, its annotations left out."""
    asked: Mapping[str, str]
    """Options of the plan besides its stages, in words: strategy, shapes, threads and others."""
    stages: StageGraph
    nodes: Sequence[str]
    """Name of each node, by its position in the weightless proto."""
    worker_groups: Sequence[int] | None = None
    """Worker group of each stage; None where each runs anywhere."""


def compare(this: Compared, other: Compared) -> str:
    """Return the differences as text, or "no difference".

    Numbers come first; then stages that both plans have, stages that the other plan cuts
    differently and where their nodes are in it, values that only one plan sends between stages, and
    worker groups.
    """
    same_model = this.token == other.token
    parts = [list(_numbers(this, other))]
    if same_model:
        parts += [list(_stages(this, other)), list(_cuts(this, other))]
    parts.append(list(_worker_groups(this, other)))
    lines = [line for part in parts for line in part]
    if not same_model:
        names = " and ".join(f"{side.model} ({side.token[:12]})" for side in (this, other))
        lines.insert(0, f"different models, whose stages cannot be compared: {names}")
    return "\n".join(map(printable, lines)) or "no difference"


def _numbers(this: Compared, other: Compared) -> Iterator[str]:
    """Return the numbers that differ, as lines of a table."""
    ours, theirs = dict(_facts(this)), dict(_facts(other))
    rows = [
        (name, ours.get(name, "none"), theirs.get(name, "none"))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    ]
    if not rows:
        return
    table = [("", "this", "other"), *rows]
    first, second = (max(len(row[i]) for row in table) for i in (0, 1))
    for name, mine, other_one in table:
        yield f"{name:<{first}}  {mine:<{second}}  {other_one}".rstrip()


def _facts(side: Compared) -> Iterator[tuple[str, str]]:
    yield from side.asked.items()
    stages = side.stages.stages
    yield "stages", str(len(stages))
    if not stages:
        return
    yield "predicted", format_seconds(side.stages.seconds)
    yield "between stages", format_bytes(sum(edge.bytes for edge in side.stages.edges))
    longest = max(range(len(stages)), key=lambda i: stages[i].cost.seconds)
    seconds = format_seconds(stages[longest].cost.seconds)
    yield "longest stage", f"{longest} with {seconds}"
    weights = [stage.cost.parameter_bytes for stage in stages]
    least, most = format_bytes(min(weights)), format_bytes(max(weights))
    yield "weights of a stage", least if least == most else f"{least} to {most}"
    kernels: Counter[str] = Counter()
    for stage in stages:
        kernels[stage.kernel] += len(stage.nodes)
    yield "nodes run on", ", ".join(f"{kernel} {count}" for kernel, count in kernels.items())


def _stages(this: Compared, other: Compared) -> Iterator[str]:
    """Return the stages that are the same, and where the nodes of the others are."""
    theirs = {stage.nodes: j for j, stage in enumerate(other.stages.stages)}
    same = [
        (i, theirs[stage.nodes])
        for i, stage in enumerate(this.stages.stages)
        if stage.nodes in theirs
    ]
    if len(same) == len(this.stages.stages) == len(theirs):
        return
    if same:
        pairs = ", ".join(f"{i}" if i == j else f"{i} (there {j})" for i, j in same[:_MOST_LINES])
        yield f"the same in both: {pairs}{_more(len(same) - _MOST_LINES, 'stages')}"
    alike = {i for i, _ in same}
    moved = [i for i in range(len(this.stages.stages)) if i not in alike]
    where = {n: j for j, stage in enumerate(other.stages.stages) for n in stage.nodes}
    if moved:
        yield "cut differently:"
    for i in moved[:_MOST_LINES]:
        yield f"    {i} {this.stages.stages[i].label}: {_nodes_of(this, other, i, where)}"
    if len(moved) > _MOST_LINES:
        yield f"    and {len(moved) - _MOST_LINES} more stages"
    for name, one, two in (("this", this, other), ("the other", other, this)):
        others = {n for stage in two.stages.stages for n in stage.nodes}
        alone = sorted({n for stage in one.stages.stages for n in stage.nodes} - others)
        if alone:
            yield f"nodes that only {name} runs: {_names(one, alone)}"


def _nodes_of(this: Compared, other: Compared, number: int, where: Mapping[int, int]) -> str:
    """Describe where the nodes of a stage are in the other plan: the largest part, and the rest.

    Parameters
    ----------
    this, other : Compared
    number : int
        Position of the stage in `this`.
    where : mapping of int to int
        Node to the position of its stage in `other`.
    """
    nodes = this.stages.stages[number].nodes
    parts: defaultdict[int, list[int]] = defaultdict(list)
    for node in nodes:
        if node in where:
            parts[where[node]].append(node)
    if not parts:
        return "not in the other"
    largest = max(parts, key=lambda j: len(parts[j]))
    with_more = len(other.stages.stages[largest].nodes) - len(parts[largest])
    joined = f" with {with_more} more" if with_more else ""
    if len(parts[largest]) == len(nodes):
        whole = "its node is" if len(nodes) == 1 else f"all {len(nodes)} nodes are"
        return f"{whole} in the other's {largest}{joined}"
    rest = [f"{_names(this, parts[j])} in {j}" for j in parts if j != largest]
    shown = "; ".join(rest[:_MOST_NAMES])
    return (
        f"{len(parts[largest])} of {len(nodes)} nodes are in the other's {largest}{joined}; {shown}"
        f"{_more(len(rest) - _MOST_NAMES, 'stages')}"
    )


def _names(side: Compared, nodes: Sequence[int]) -> str:
    shown = ", ".join(side.nodes[n] for n in nodes[:_MOST_NAMES])
    return f"{shown}{_more(len(nodes) - _MOST_NAMES, '')}"


def _more(count: int, what: str) -> str:
    return f" and {count} more {what}".rstrip() if count > 0 else ""


def _cuts(this: Compared, other: Compared) -> Iterator[str]:
    """Return the values that only one plan sends between stages, largest first."""
    for name, one, two in (("this", this, other), ("the other", other, this)):
        shared = {edge.value for edge in two.stages.edges}
        alone = {edge.value: edge.bytes for edge in one.stages.edges if edge.value not in shared}
        if not alone:
            continue
        yield f"cut only in {name}: {len(alone)} {'value' if len(alone) == 1 else 'values'}"
        largest = sorted(alone.items(), key=lambda item: -item[1])
        for value, size in largest[:_MOST_LINES]:
            yield f"    {format_bytes(size):>10}  {value}"
        if len(alone) > _MOST_LINES:
            yield f"    and {len(alone) - _MOST_LINES} more"


def _worker_groups(this: Compared, other: Compared) -> Iterator[str]:
    ours, theirs = (
        None if side.worker_groups is None else tuple(side.worker_groups) for side in (this, other)
    )
    if ours == theirs:
        return
    yield f"workers of the stages: this {_groups(ours)}; the other {_groups(theirs)}"


def _groups(worker_groups: Sequence[int] | None) -> str:
    if worker_groups is None:
        return "any"
    return " ".join(map(str, worker_groups[:_MOST_LINES])) + _more(
        len(worker_groups) - _MOST_LINES, ""
    )
