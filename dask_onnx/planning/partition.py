"""Strategies: ways to cut a model into stages. Each is a function of the facts to a StageGraph."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dask_onnx.analysis.cost import CostTable, NodeCost, node_costs, value_bytes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.errors import PlanError
from dask_onnx.planning.stages import Edge, Stage, StageCost, StageGraph
from dask_onnx.specs import NodeKernel, TensorSpec

_LABEL_NODES = 3
"""A stage of up to so many nodes is called by all of them, a longer one by its first and last."""
_LABEL_LENGTH = 48
_LABEL_FOLDERS = 3
_BYTES_OF_A_HOP = 256 * 1024
"""Bytes that take about as long between two processes as saying that they are there."""


@dataclass(frozen=True, eq=False)
class CutInputs:
    """All that a strategy may look at."""

    facts: GraphFacts
    specs: Mapping[str, TensorSpec]
    """Every value at the shapes that the cost is wanted for."""
    declared: Mapping[str, TensorSpec]
    """Every value at the model's own, symbolic shapes: what a stage's interface says."""
    outputs: tuple[str, ...]
    costs: CostTable
    kernels: Sequence[NodeKernel]
    """What runs each node of the graph."""

    @cached_property
    def node_costs(self) -> list[NodeCost]:
        return node_costs(self.facts, self.specs)

    @cached_property
    def nodes(self) -> list[int]:
        """The nodes that the outputs need, in the order of the file."""
        return self.facts.ancestors(self.outputs)

    def seconds(self, node: int) -> float:
        return self.costs.seconds(self.node_costs[node], self.kernels[node].kernel)


def whole(cut: CutInputs) -> StageGraph:
    """The model as one stage: what a cluster wants unless there is a reason to split."""
    return _stage_graph(cut, [cut.nodes], [_identifier(cut.facts.model.name)])


def per_node(cut: CutInputs) -> StageGraph:
    """A stage for each node: to look at, to test with, to find the slow one."""
    return _stage_graph(cut, [[index] for index in cut.nodes])


def fused(cut: CutInputs, *, n_stages: int | None = None, min_seconds: float = 0.05) -> StageGraph:
    """Convex regions of about equal predicted time, cut where little has to travel.

    The nodes are put into a depth-first topological order, an interval of which is convex by
    construction, and chains that ORT fuses (a Conv and its activation) are kept in one piece. The
    order is then cut near equal shares of the predicted time, within half a share at the place
    where the fewest bytes cross. Linear in the number of nodes.

    Parameters
    ----------
    n_stages : int, optional
        How many stages; at most one for each unbreakable chain.
    min_seconds : float
        Without `n_stages`: what each stage should compute at least, in predicted seconds.

    Raises
    ------
    PlanError
        `n_stages` is not between 1 and the number of chains.
    """
    chains = _chains(cut)
    seconds = [sum(map(cut.seconds, chain)) for chain in chains]
    if n_stages is None:
        n_stages = max(1, min(len(chains), int(sum(seconds) / min_seconds)))
    if not 1 <= n_stages <= max(len(chains), 1):
        raise PlanError(
            f"{n_stages} stages were asked for; the model can be cut into 1 to {len(chains)}",
            "choose n_stages in that range, or strategy 'per_node'",
        )
    borders = _borders(seconds, _tears(cut, chains), n_stages)
    groups = [
        sorted(itertools.chain.from_iterable(chains[start:stop]))
        for start, stop in itertools.pairwise([0, *borders, len(chains)])
    ]
    return _stage_graph(cut, groups)


STRATEGIES: Mapping[str, Callable[..., StageGraph]] = {
    "whole": whole,
    "per_node": per_node,
    "fused": fused,
}


def _chains(cut: CutInputs) -> list[list[int]]:
    """Nodes in depth-first order, grouped where a cut would tear what ORT runs as one kernel."""
    order = cut.facts.depth_first_order(cut.nodes)
    chains: list[list[int]] = []
    for index in order:
        if chains and _continues(cut, chains[-1][-1], index):
            chains[-1].append(index)
        else:
            chains.append([index])
    return chains


def _continues(cut: CutInputs, before: int, node: int) -> bool:
    """Whether `node` takes nothing computed but what `before` gives to it alone, and changes it
    element by element."""
    facts = cut.facts
    if facts.predecessors[node] != [before] or facts.successors[before] != [node]:
        return False
    if any(name in cut.outputs for name in facts.nodes[before].outputs):
        return False
    return facts.nodes[node].op_type in _FUSED_INTO_PRODUCER


_FUSED_INTO_PRODUCER = frozenset(
    (
        "Add BatchNormalization Clip Elu HardSigmoid HardSwish LeakyRelu Mul PRelu Relu "
        "Sigmoid Softplus Sub Tanh DequantizeLinear QuantizeLinear Cast Gelu"
    ).split()
)


def _crossing_bytes(cut: CutInputs, chains: Sequence[Sequence[int]]) -> list[int]:
    """For each border between chains i and i + 1 the bytes of the values that cross it."""
    facts = cut.facts
    place = {node: i for i, chain in enumerate(chains) for node in chain}
    change = [0] * (len(chains) + 1)
    for node, position in place.items():
        for name in facts.nodes[node].outputs:
            readers = [place[i] for i in facts.consumers.get(name, ()) if i in place]
            last = max(readers, default=position)
            if last > position:
                size = value_bytes(cut.specs.get(name))
                change[position] += size
                change[last] -= size
    return list(itertools.accumulate(change))[: max(len(chains) - 1, 0)]


def _tears(cut: CutInputs, chains: Sequence[Sequence[int]]) -> list[tuple[int, bool, int]]:
    """For each border how bad it is to cut there, to be compared as a tuple.

    Bytes come first, but only in steps that weigh as much as a hop between processes does anyway;
    then whether the border is inside a branch, where a cut makes the two stages wait for each
    other; then bytes to the last.
    """
    crossing = _crossing_bytes(cut, chains)
    inside = [
        any(before in set(earlier) for node in later for before in cut.facts.predecessors[node])
        for earlier, later in itertools.pairwise(chains)
    ]
    return [
        (size // _BYTES_OF_A_HOP, is_inside, size)
        for size, is_inside in zip(crossing, inside, strict=True)
    ]


def _borders(
    seconds: Sequence[float], tears: Sequence[tuple[int, bool, int]], n_stages: int
) -> list[int]:
    """Where to cut: n_stages - 1 positions, each the start of a stage, strictly ascending."""
    done = list(itertools.accumulate(seconds))
    share = done[-1] / n_stages if done else 0.0
    ends = np.asarray(done)
    borders: list[int] = []
    for number in range(1, n_stages):
        # Every stage needs a chain of its own: so many are left for those before and after.
        first = (borders[-1] if borders else 0) + 1
        last = len(seconds) - (n_stages - number)
        ideal = share * number
        low = int(np.searchsorted(ends, ideal - share / 2)) + 1
        high = int(np.searchsorted(ends, ideal + share / 2)) + 1
        low, high = min(max(low, first), last), min(max(high, first), last)
        borders.append(
            min(range(low, high + 1), key=lambda i: (tears[i - 1], abs(done[i - 1] - ideal)))
        )
    return borders


def _by_kernel(cut: CutInputs, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Split groups so that one kernel runs each; in an order in which they can run.

    A node's level is how often the kernel changes on the way to it, within its group. Nodes of
    one level and kernel are convex, since a path that leaves them comes back on a higher level.
    """
    parts: list[list[int]] = []
    for group in groups:
        members = set(group)
        levels: dict[int, int] = {}
        by_level: dict[tuple[int, str], list[int]] = {}
        for node in sorted(group):
            kernel = cut.kernels[node].kernel
            levels[node] = max(
                (
                    levels[before] + (cut.kernels[before].kernel != kernel)
                    for before in cut.facts.predecessors[node]
                    if before in members
                ),
                default=0,
            )
            by_level.setdefault((levels[node], kernel), []).append(node)
        parts += [by_level[key] for key in sorted(by_level)]
    return parts


def _stage_graph(
    cut: CutInputs, groups: Sequence[Sequence[int]], labels: Sequence[str] | None = None
) -> StageGraph:
    """Groups of nodes, in an order in which they can run, as a StageGraph with its edges."""
    facts = cut.facts
    inputs = tuple(cut.declared[name] for name in facts.inputs)
    # An output that no node makes is an input or an initializer, handed on by the last stage.
    loose = [name for name in cut.outputs if name not in facts.producer]
    split = _by_kernel(cut, groups)
    labels = labels if len(split) == len(groups) else None
    groups = split or [[]]
    stage_of = {node: i for i, group in enumerate(groups) for node in group}
    stages = tuple(
        _stage(
            cut,
            stage_of,
            number,
            group,
            label=labels[number] if labels else _label(cut, group),
            loose=loose if number == len(groups) - 1 else (),
            is_only=len(groups) == 1,
        )
        for number, group in enumerate(groups)
    )
    producers = {spec.name: i for i, stage in enumerate(stages) for spec in stage.outputs}
    edges = tuple(
        Edge(spec.name, producers[spec.name], i, value_bytes(cut.specs.get(spec.name)))
        for i, stage in enumerate(stages)
        for spec in stage.inputs
        if spec.name in producers and producers[spec.name] != i
    )
    used = {spec.name for stage in stages for spec in stage.inputs}
    return StageGraph(
        stages,
        edges,
        tuple(spec for spec in inputs if spec.name in used),
        tuple(_spec(cut, name) for name in cut.outputs),
    )


def _stage(
    cut: CutInputs,
    stage_of: Mapping[int, int],
    number: int,
    group: Sequence[int],
    *,
    label: str,
    loose: Sequence[str],
    is_only: bool,
) -> Stage:
    facts = cut.facts
    made = {name for node in group for name in facts.nodes[node].outputs}
    reads = dict.fromkeys(
        name
        for node in group
        for name in facts.nodes[node].reads
        if name not in made and name not in facts.initializers
    )
    wanted = [
        name
        for node in group
        for name in facts.nodes[node].outputs
        if name in cut.outputs
        or any(stage_of.get(i, number) != number for i in facts.consumers.get(name, ()))
    ]
    reads.update(dict.fromkeys(name for name in loose if name in facts.inputs))
    # A stage that is the model gives its outputs in the order in which they were asked for.
    wanted = list(cut.outputs) if is_only else [*wanted, *loose]
    cost = sum((cut.node_costs[i] for i in group), NodeCost(0, 0, 0))
    return Stage(
        label=label,
        nodes=tuple(sorted(group)),
        inputs=tuple(_spec(cut, name) for name in reads),
        outputs=tuple(_spec(cut, name) for name in dict.fromkeys(wanted)),
        cost=StageCost(
            flops=cost.flops,
            seconds=sum(map(cut.seconds, group)),
            parameter_bytes=cost.parameter_bytes,
            activation_bytes=sum(value_bytes(cut.specs.get(name)) for name in wanted),
        ),
        kernel=cut.kernels[group[0]].kernel if group else "onnxruntime",
    )


def _spec(cut: CutInputs, name: str) -> TensorSpec:
    return cut.declared.get(name, TensorSpec(name, None, None))


def _label(cut: CutInputs, group: Sequence[int]) -> str:
    names = [_identifier(cut.facts.nodes[index].name) for index in group]
    if len(names) > _LABEL_NODES:
        return f"{names[0]}..{names[-1]}"
    return "+".join(names)


def _identifier(name: str) -> str:
    """A name as Dask's `key_split` leaves it alone: no hyphen, a letter first, not endless."""
    # Of a path the end tells most: exporters put the module's place in the model before it.
    end = ".".join(name.replace("::", ".").strip("/").split("/")[-_LABEL_FOLDERS:])
    text = re.sub(r"[^0-9A-Za-z_.]+", "_", end).strip("_.")[-_LABEL_LENGTH:].strip("_.")
    if not text:
        return "stage"
    return text if text[0].isalpha() else f"n{text}"
