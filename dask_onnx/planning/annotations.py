"""The stages that ONNX's own annotations say, and a plan's stages written as such annotations."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.core.errors import PlanError
from dask_onnx.modelio.devices import DeviceConfiguration, read_configurations, write_stages
from dask_onnx.modelio.normalise import captured_names
from dask_onnx.planning.cutting import CutInputs, stage_graph_of
from dask_onnx.planning.stages import StageGraph

_SHOWN = 3


def from_annotations(cut: CutInputs, *, configuration: str | None = None) -> StageGraph:
    """The stages that the model says: nodes of one `pipeline_stage` each, in ascending order.

    Parameters
    ----------
    configuration : str, optional
        Name of the configuration; may be left out where only one has stages.

    Raises
    ------
    PlanError
        No node says its stage; several configurations do, or not this one; a node reads what a
        node of a later stage makes.
    """
    found = chosen_configuration(cut.facts, configuration)
    numbers = stage_numbers(cut.facts, cut.nodes, found.stages)
    _check_flow(cut.facts, found, numbers)
    groups: dict[int, list[int]] = {}
    for node in cut.nodes:
        groups.setdefault(numbers[node], []).append(node)
    return stage_graph_of(cut, [groups[number] for number in sorted(groups)])


def chosen_configuration(facts: GraphFacts, name: str | None) -> DeviceConfiguration:
    """The configuration of that name, or the only one that has stages.

    Raises
    ------
    PlanError
        There is none, or not one alone.
    """
    found = read_configurations(facts.proto)
    staged = [each for each in found.values() if each.stages]
    model = facts.model.name
    if not staged:
        said = f"; its configurations {_names(found)} say no stages" if found else ""
        raise PlanError(
            f"no node of model {model!r} says its pipeline_stage{said}",
            "write stages into it, with model.plan('pipeline', n_stages=3).annotate(path) or an "
            "exporter's means, or choose another strategy",
        )
    if name is None and len(staged) > 1:
        names = [each.name for each in staged]
        raise PlanError(
            f"model {model!r} has stages in {len(staged)} configurations: {_names(names)}",
            f"choose one: from_annotations(configuration={names[0]!r})",
        )
    if name is None:
        return staged[0]
    if name not in found or not found[name].stages:
        fault = "says no stages" if name in found else "is not there"
        raise PlanError(
            f"the configuration {name!r} of model {model!r} {fault}",
            f"with stages there is {_names(each.name for each in staged)}",
        )
    return found[name]


def stage_numbers(
    facts: GraphFacts, nodes: Sequence[int], given: Mapping[int, int]
) -> dict[int, int]:
    """The stage of each of `nodes`, ascending, as the model says or as follows from what it says.

    A node that says none is in the latest stage that a node before it says. Where none before it
    does, as at the beginning of the graph, it is in the earliest of those that read it, and so is
    what follows from weights alone. Where no path leads to a node that says something: the first.
    """
    numbers = {node: given[node] for node in nodes if node in given}
    first, last = min(numbers.values(), default=0), max(numbers.values(), default=0)
    constant = [n for n in nodes if n not in numbers and n in facts.constant_nodes]
    moving = [n for n in nodes if n not in numbers and n not in facts.constant_nodes]
    _follow(numbers, moving, facts.predecessors, max)
    _follow(numbers, reversed(moving), facts.successors, min)
    _follow(numbers, moving, facts.predecessors, max, otherwise=first)
    _follow(numbers, reversed(constant), facts.successors, min, otherwise=last)
    return numbers


def _follow(
    numbers: dict[int, int],
    nodes: Iterable[int],
    beside: Sequence[Sequence[int]],
    choose: Callable[[Iterable[int]], int],
    *,
    otherwise: int | None = None,
) -> None:
    """Give nodes that have no number one of those that the nodes beside them have."""
    for node in nodes:
        known = [numbers[other] for other in beside[node] if other in numbers]
        number = choose(known) if known else otherwise
        if number is not None:
            numbers.setdefault(node, number)


def _check_flow(facts: GraphFacts, found: DeviceConfiguration, numbers: Mapping[int, int]) -> None:
    """No node may read what a later stage makes."""
    faults = []
    for node, number in numbers.items():
        for name in dict.fromkeys(facts.nodes[node].reads):
            maker = facts.producer.get(name)
            if maker is None or numbers[maker] <= number:
                continue
            said = "" if maker in found.stages else ", as follows from what it reads"
            faults.append(
                f"node {facts.nodes[node].name!r} of stage {number} reads {name!r}, which "
                f"{facts.nodes[maker].name!r} makes in stage {numbers[maker]}{said}"
            )
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise PlanError(
            f"the stages of configuration {found.name!r} cannot run in order: "
            f"{'; '.join(faults[:_SHOWN])}{more}",
            "give each node a pipeline_stage that is not before those of the nodes it reads from",
        )


def groups_of(facts: GraphFacts, stages: StageGraph, name: str | None) -> tuple[int, ...] | None:
    """A worker group for each stage, in turns over the devices that the configuration has.

    What is split further, since no one kernel runs it, stays on one worker group. None, which is
    any worker for any stage, where the configuration has one device, or does not say how many.
    """
    found = chosen_configuration(facts, name)
    numbers = _numbers_in(facts, stages, found)
    places = {number: place for place, number in enumerate(sorted(set(numbers.values())))}
    count = min(found.devices or 1, len(places))
    if count < 2:
        return None
    return tuple(places[numbers[stage.nodes[0]]] % count for stage in stages.stages)


def _numbers_in(
    facts: GraphFacts, stages: StageGraph, found: DeviceConfiguration
) -> dict[int, int]:
    nodes = sorted({node for stage in stages.stages for node in stage.nodes})
    return stage_numbers(facts, nodes, found.stages)


def _warn_of_repeats(facts: GraphFacts, stages: StageGraph) -> None:
    times = Counter(node for stage in stages.stages for node in stage.nodes)
    repeated = [facts.nodes[node].name for node, count in sorted(times.items()) if count > 1]
    if repeated:
        more = f" and {len(repeated) - 1} more" if len(repeated) > 1 else ""
        warnings.warn(
            f"node {repeated[0]!r}{more} run in several stages of the plan, which an annotation "
            "cannot say: who follows it has the others wait for the first of these stages",
            stacklevel=4,
        )


def annotate(
    model: onnx.ModelProto, facts: GraphFacts, stages: StageGraph, *, name: str, devices: int
) -> None:
    """Write stages into a model, in place: the one that they are of, in this form or another.

    Nodes are found by the values that they make. One that nobody runs as a node, as a Constant, is
    of the earliest stage that reads it; one that several stages repeat, of the first of these.

    Parameters
    ----------
    facts : of the model as it was loaded, whose nodes the stages name
    devices : how many the configuration has

    Raises
    ------
    PlanError
        The model does not make what the stages make; a stage ends inside one of its nodes, as a
        call of a function can be.
    """
    stage_of = {
        node: number
        for number, stage in reversed(list(enumerate(stages.stages)))
        for node in stage.nodes
    }
    _warn_of_repeats(facts, stages)
    numbers: dict[int, int] = {}
    for index, node in enumerate(model.graph.node):
        within = {i for i in _stands_for(node, facts) if i in stage_of}
        found = sorted({stage_of.pop(i) for i in within})
        if len(found) > 1:
            raise PlanError(
                f"node {node.name or node.output[0]!r} ({node.op_type}) stands for {len(within)} "
                f"nodes of the plan, in stages {', '.join(map(str, found))}: it can say only one",
                "annotate the model as it was loaded: plan.annotate() without a model",
            )
        if found:
            numbers[index] = found[0]
    if stage_of:
        missing = facts.nodes[min(stage_of)]
        raise PlanError(
            f"the model given is not the plan's: {len(stage_of)} nodes of the plan have none in "
            f"it that makes the same of the same, such as {missing.name!r} ({missing.op_type})",
            "pass the model that the plan was made of, or none",
        )
    _add_unmatched(model.graph, numbers)
    write_stages(model, name, numbers, devices)


def _stands_for(node: onnx.NodeProto, facts: GraphFacts) -> list[int]:
    """The nodes of the loaded model that make what `node` makes, of what it reads."""
    given = [*node.input, *captured_names(node)]
    inner, read = facts.between(given, [name for name in node.output if name in facts.producer])
    from_elsewhere = read.intersection(facts.inputs).difference(given)
    return [] if from_elsewhere else inner


def _add_unmatched(graph: onnx.GraphProto, numbers: dict[int, int]) -> None:
    """Give nodes that no stage has, which are constants, the earliest stage that reads them."""
    first: dict[str, int] = {}
    for index, number in numbers.items():
        node = graph.node[index]
        for name in (*node.input, *captured_names(node)):
            first[name] = min(number, first.get(name, number))
    for index, node in enumerate(graph.node):
        found = [first[name] for name in node.output if name in first]
        if index not in numbers and found:
            numbers[index] = min(found)


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
