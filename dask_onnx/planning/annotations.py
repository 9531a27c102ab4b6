"""Stages from ONNX's own annotations (`pipeline_stage`), and stages written as annotations."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import onnx

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.formatting import format_count
from dask_onnx.modelio.devices import DeviceConfiguration, read_configurations, write_stages
from dask_onnx.modelio.normalise import captured_names
from dask_onnx.modelio.weights import graphs_of
from dask_onnx.planning.cutting import CutInputs, stage_graph_of
from dask_onnx.planning.stages import StageGraph

_NOTES = "dask_onnx."
"""Beginning of the keys of metadata that `annotate` writes."""
_SHOWN = 3
"""Most faults that an error lists."""


def from_annotations(cut: CutInputs, *, configuration: str | None = None) -> StageGraph:
    """Cut into the stages that the model gives: nodes of one `pipeline_stage`, in ascending order.

    Parameters
    ----------
    cut : CutInputs
        The graph and what its nodes cost.
    configuration : str, optional
        Name of the device configuration; may be omitted where only one has stages.

    Raises
    ------
    PlanError
        No node has a stage, several configurations have, or not the named one, or a node reads what
        a node of a later stage produces.
    """
    found = chosen_configuration(cut.facts, configuration)
    numbers = stage_numbers(cut.facts, cut.nodes, found.stages)
    _check_order(cut.facts, found, numbers)
    groups: dict[int, list[int]] = {}
    for node in cut.nodes:
        groups.setdefault(numbers[node], []).append(node)
    return stage_graph_of(cut, [groups[number] for number in sorted(groups)])


def chosen_configuration(facts: GraphFacts, name: str | None) -> DeviceConfiguration:
    """Return the configuration of this name; without a name, the only one that has stages.

    Raises
    ------
    PlanError
        There is none, or more than one.
    """
    found = read_configurations(facts.proto)
    staged = [each for each in found.values() if each.stages]
    model = facts.model.name
    if not staged:
        without = f"; its configurations {_names(found)} have no stages" if found else ""
        raise PlanError(
            f"no node of model {model!r} has a pipeline_stage{without}",
            "write stages into it, with model.plan('pipeline', n_stages=3).annotate(path) or an "
            "exporter, or choose another strategy",
            option="strategy",
            suggestions=[Suggestion("strategy", "pipeline")],
        )
    choices = [Suggestion("configuration", each.name) for each in staged]
    if name is None and len(staged) > 1:
        names = [each.name for each in staged]
        raise PlanError(
            f"model {model!r} has stages in {len(staged)} configurations: {_names(names)}",
            f"choose one: from_annotations(configuration={names[0]!r})",
            option="configuration",
            numbers={"configurations": len(staged)},
            suggestions=choices,
        )
    if name is None:
        return staged[0]
    if name not in found or not found[name].stages:
        fault = "has no stages" if name in found else "does not exist"
        raise PlanError(
            f"the configuration {name!r} of model {model!r} {fault}",
            f"configurations with stages: {_names(each.name for each in staged)}",
            option="configuration",
            suggestions=choices,
        )
    return found[name]


def digest_without_annotations(proto: onnx.ModelProto) -> str:
    """Return a digest of what a model computes, equal for all of its annotated copies.

    Parameters
    ----------
    proto : ModelProto
        A weightless proto as it was loaded; it is changed. Metadata of nodes count: loading keeps
        only those that results depend on, such as the class labels of a ZipMap.
    """
    proto.ClearField("configuration")
    # Annotations need a newer version; the operators' versions are those of their sets.
    for name in ("ir_version", "producer_name", "producer_version", "doc_string", "metadata_props"):
        proto.ClearField(name)
    for graph in graphs_of(proto):
        graph.ClearField("doc_string")
        graph.ClearField("metadata_props")
        for node in graph.node:
            node.ClearField("device_configurations")
            node.ClearField("doc_string")
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()[:32]


def stage_numbers(
    facts: GraphFacts, nodes: Sequence[int], given: Mapping[int, int]
) -> dict[int, int]:
    """Return the stage of each node: the annotated one, or one that follows from its neighbours.

    A node without an annotation belongs to the latest annotated stage before it. Where no node
    before it has one, as at the beginning of the graph, it belongs to the earliest stage of its
    consumers, and so does what depends on weights alone. A node without a path to an annotated node
    belongs to the first stage.

    Parameters
    ----------
    facts : GraphFacts
        The model's graph.
    nodes : sequence of int
        Positions of the nodes, ascending.
    given : mapping of int to int
        Annotated stage of nodes, by their positions.
    """
    numbers = {node: given[node] for node in nodes if node in given}
    first, last = min(numbers.values(), default=0), max(numbers.values(), default=0)
    constant = [n for n in nodes if n not in numbers and n in facts.constant_nodes]
    moving = [n for n in nodes if n not in numbers and n not in facts.constant_nodes]
    _propagate(numbers, moving, facts.predecessors, max)
    _propagate(numbers, reversed(moving), facts.successors, min)
    _propagate(numbers, moving, facts.predecessors, max, otherwise=first)
    _propagate(numbers, reversed(constant), facts.successors, min, otherwise=last)
    return numbers


def _propagate(
    numbers: dict[int, int],
    nodes: Iterable[int],
    neighbours: Sequence[Sequence[int]],
    choose: Callable[[Iterable[int]], int],
    *,
    otherwise: int | None = None,
) -> None:
    """Give each node without a number one of its neighbours' numbers."""
    for node in nodes:
        known = [numbers[other] for other in neighbours[node] if other in numbers]
        number = choose(known) if known else otherwise
        if number is not None:
            numbers.setdefault(node, number)


def _check_order(facts: GraphFacts, found: DeviceConfiguration, numbers: Mapping[int, int]) -> None:
    """Check that no node reads what a later stage produces."""
    faults = []
    faulty = []
    for node, number in numbers.items():
        for name in dict.fromkeys(facts.nodes[node].reads):
            producer = facts.producer.get(name)
            if producer is None or numbers[producer] <= number:
                continue
            derived = "" if producer in found.stages else ", as follows from its inputs"
            faulty.append(facts.nodes[node].name)
            faults.append(
                f"node {facts.nodes[node].name!r} of stage {number} reads {name!r}, which "
                f"{facts.nodes[producer].name!r} produces in stage {numbers[producer]}{derived}"
            )
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise PlanError(
            f"the stages of configuration {found.name!r} cannot run in order: "
            f"{'; '.join(faults[:_SHOWN])}{more}",
            "give each node a pipeline_stage that is not before those of the nodes it reads from",
            option="configuration",
            node=faulty[0],
            numbers={"faults": len(faults)},
        )


def annotated_worker_groups(
    facts: GraphFacts, stages: StageGraph, name: str | None
) -> tuple[int, ...] | None:
    """Return a worker group for each stage, in turns over the devices of the configuration.

    Parts of a stage that was split because different kernels run it share a worker group.

    Parameters
    ----------
    facts : GraphFacts
        The model's graph.
    stages : StageGraph
        Stages that `from_annotations` made.
    name : str, optional
        Name of the configuration.

    Returns
    -------
    tuple of int or None
        None, any worker for any stage, where the configuration has one device or does not say how
        many.
    """
    found = chosen_configuration(facts, name)
    nodes = sorted({node for stage in stages.stages for node in stage.nodes})
    numbers = stage_numbers(facts, nodes, found.stages)
    ranks = {number: rank for rank, number in enumerate(sorted(set(numbers.values())))}
    count = min(found.devices or 1, len(ranks))
    if count < 2:
        return None
    return tuple(ranks[numbers[stage.nodes[0]]] % count for stage in stages.stages)


def _warn_of_repeats(facts: GraphFacts, stages: StageGraph) -> None:
    times = Counter(node for stage in stages.stages for node in stage.nodes)
    repeated = [facts.nodes[node].name for node, count in sorted(times.items()) if count > 1]
    if repeated:
        more = f" and {len(repeated) - 1} more" if len(repeated) > 1 else ""
        warnings.warn(
            f"node {repeated[0]!r}{more} run in several stages of the plan, which an annotation "
            "cannot express: a runtime that follows it makes the other stages wait for the first",
            stacklevel=4,
        )


def annotate(
    model: onnx.ModelProto, facts: GraphFacts, stages: StageGraph, *, name: str, devices: int
) -> None:
    """Write stages into a model as annotations, in place, and their cost as metadata of nodes.

    The model is the one that the stages are of, in this form or another: nodes are found by the
    values that they produce. A node that no stage runs, such as a Constant, gets the earliest stage
    that reads it; a node that several stages repeat gets the first of these.

    Parameters
    ----------
    model : ModelProto
        Model to annotate.
    facts : GraphFacts
        Graph of the model as it was loaded, whose nodes the stages name.
    stages : StageGraph
        Stages to write.
    name : str
        Name of the configuration.
    devices : int
        Number of devices of the configuration.

    Raises
    ------
    PlanError
        The model does not produce the values of the stages, or a stage ends inside one of its
        nodes, such as a function call.
    """
    stage_of = {
        node: number
        for number, stage in reversed(list(enumerate(stages.stages)))
        for node in stage.nodes
    }
    _warn_of_repeats(facts, stages)
    numbers: dict[int, int] = {}
    for index, node in enumerate(model.graph.node):
        within = {i for i in _nodes_of_call(node, facts) if i in stage_of}
        found = sorted({stage_of.pop(i) for i in within})
        if len(found) > 1:
            raise PlanError(
                f"node {node.name or node.output[0]!r} ({node.op_type}) stands for {len(within)} "
                f"nodes of the plan, in stages {', '.join(map(str, found))}: it can have only one",
                "annotate the model as it was loaded: plan.annotate() without a model",
                option="model",
                node=node.name or node.output[0],
                numbers={"nodes": len(within), "stages": len(found)},
            )
        if found:
            numbers[index] = found[0]
    if stage_of:
        missing = facts.nodes[min(stage_of)]
        raise PlanError(
            f"the model given is not the plan's: for {format_count(len(stage_of), 'node')} of the "
            "plan it has none that produces the same values from the same inputs, such as "
            f"{missing.name!r} ({missing.op_type})",
            "pass the model that the plan was made of, or none",
            option="model",
            node=missing.name,
            numbers={"nodes": len(stage_of)},
        )
    _add_unmatched(model.graph, numbers)
    write_stages(model, name, numbers, devices)
    notes = list(_notes_of(stages))
    for index, number in numbers.items():
        _write_notes(model.graph.node[index], notes[number])


def _notes_of(stages: StageGraph) -> Iterator[dict[str, str]]:
    """Yield the facts of each stage that viewers of ONNX files show at its nodes."""
    sent = Counter[int]()
    for edge in stages.edges:
        sent[edge.producer] += edge.bytes
    for number, stage in enumerate(stages.stages):
        yield {
            "stage": f"{number}: {stage.label}",
            "stage_seconds": f"{stage.cost.seconds:.6g}",
            "stage_flops": str(stage.cost.flops),
            "stage_weight_bytes": str(stage.cost.parameter_bytes),
            "stage_sent_bytes": str(sent[number]),
        }


def _write_notes(node: onnx.NodeProto, notes: Mapping[str, str]) -> None:
    """Write facts as metadata of a node, in the place of those of an earlier plan."""
    kept = [each for each in node.metadata_props if not each.key.startswith(_NOTES)]
    copies = [(each.key, each.value) for each in kept]
    node.ClearField("metadata_props")
    for key, value in (*copies, *((_NOTES + key, value) for key, value in notes.items())):
        node.metadata_props.add(key=key, value=value)


def _nodes_of_call(node: onnx.NodeProto, facts: GraphFacts) -> list[int]:
    """Return the nodes of the loaded model that compute `node`'s outputs from its inputs."""
    given = [*node.input, *captured_names(node)]
    inner, read = facts.between(given, [name for name in node.output if name in facts.producer])
    other_inputs = read.intersection(facts.inputs).difference(given)
    return [] if other_inputs else inner


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
