"""Effect of nodes on shards by the axis analysis, with parameters and shapes cut to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.axes.propagate import Walk
from dask_onnx.analysis.axes.view import DEPENDENT, NodeView
from dask_onnx.sharding.attention_cuts import ATTENTION
from dask_onnx.sharding.axis_queries import evaluate_rule, with_dependences
from dask_onnx.sharding.node_cuts import (
    ALL_ELEMENTS,
    Step,
    dependence_of,
    layout_of,
    partial_sum_step,
    stop,
    weights_of,
)
from dask_onnx.sharding.packed_weight_cuts import is_packed, packed_rows
from dask_onnx.sharding.shard_layout import Layout

_Special = Callable[[NodeView], Step | None]


def pass_step(walk: Walk, view: NodeView, is_constant: Callable[[str], bool]) -> Step:
    """Return the effect of a node on the shards of its inputs.

    Parameters
    ----------
    walk : Walk
        Axis analysis with the dependences of earlier nodes.
    view : NodeView
        Node with the dependences of its inputs.
    is_constant : callable
        True if a value of that name follows from weights alone.
    """
    for weight in weights_of(view):
        dep = view.dep(weight.data)
        is_summed = dep.is_independent and dep.axis == weight.contracted
        if is_summed and is_constant(view.proto.input[weight.weight]):
            return partial_sum_step(view, weight)
    if (
        is_packed(view)
        and view.dep(0).is_independent
        and view.dep(0).axis == (view.rank(0) or 0) - 1
    ):
        return (
            packed_rows(view)
            if is_constant(view.proto.input[1])
            else stop(Kind.CONTRACTED, "the packed operand is not a weight")
        )
    special = ATTENTION.get((view.proto.domain, view.op)) or _SPECIAL.get(
        (view.proto.domain, view.op)
    )
    step = special(view) if special is not None else None
    return step or _by_algebra(walk, view)


def _by_algebra(walk: Walk, view: NodeView) -> Step:
    """Return the step by the operator's axis rule, with whole operands cut if necessary."""
    found = evaluate_rule(walk, view)
    if _goes_through(view, found):
        return _with_shapes(view, found, {})
    cuts = _aligned(view)
    if cuts:
        ins = [dependence_of(cuts[i]) if i in cuts else dep for i, dep in enumerate(view.ins)]
        tried = evaluate_rule(walk, with_dependences(view, ins))
        if _goes_through(view, tried):
            return _with_shapes(view, tried, cuts)
    broken = next((d for d in found if d.is_broken or d.coupled), found[0])
    if broken.kind == Kind.FACTORED and view.op == "Reshape":
        return stop(Kind.FACTORED, _reshape_reason(view))
    if broken.coupled:
        reason = "takes a quantisation statistic over all of it"
        return replace(stop(Kind.REDUCED, reason), needs_global_statistic=True)
    how = f" ({broken.how})" if broken.how else ""
    return stop(broken.kind, f"{broken.kind.label}{how}")


def _goes_through(view: NodeView, found: Sequence[Dependence]) -> bool:
    """Return whether each output follows from one shard, or from nothing that is cut."""
    outputs = [dep for name, dep in zip(view.proto.output, found, strict=False) if name]
    is_local = all(dep.is_independent or dep.kind == Kind.FREE for dep in outputs)
    return is_local and not any(dep.coupled for dep in outputs)


def _aligned(view: NodeView) -> dict[int, Layout]:
    """Return the layouts of whole operands along the axis that they share with a cut operand."""
    carriers = [i for i in view.carriers if view.dep(i).is_independent]
    if not carriers:
        return {}
    lead = view.dep(carriers[0])
    cuts = {}
    for index in range(len(view.proto.input)):
        shape = view.shape(index)
        if index in carriers or shape is None:
            continue
        axis = _same_axis(view, carriers[0], index)
        size = shape[axis] if 0 <= axis < len(shape) else None
        if size is not None and size > 1 and not size % (lead.outer * view.positions):
            cuts[index] = Layout(axis, lead.outer, size // (lead.outer * view.positions))
    return cuts


def _same_axis(view: NodeView, lead: int, other: int) -> int:
    """Return the axis of one input that corresponds to the cut axis of another; -1 for none."""
    axis = view.dep(lead).axis or 0
    if view.op == "Einsum":
        terms = view.attr("equation", b"").decode().replace(" ", "").partition("->")[0].split(",")
        return terms[other].find(terms[lead][axis]) if "." not in terms[lead] else -1
    return (view.rank(other) or 0) - (view.rank(lead) or 0) + axis


def _reshape_reason(view: NodeView) -> str:
    """Return the reason why a Reshape does not keep shards apart."""
    dep, before, after = view.dep(0), view.shape(0), view.out_shape()
    size = None if before is None or dep.axis is None else before[dep.axis]
    if after is None or size is None:
        return "its shards end inside blocks of the new shape"
    return (
        f"an axis of {size} becomes {tuple(after)}: {view.positions} shards of "
        f"{size // view.positions} end inside blocks of the new shape"
    )


def _with_shapes(view: NodeView, found: Sequence[Dependence], cuts: Mapping[int, Layout]) -> Step:
    """Return the step with changes to operands and attributes that hold sizes of the cut axis."""
    step = Step("through", found, cuts)
    if view.proto.domain:
        return step
    if view.op in ("Reshape", "Expand"):
        return _with_target(view, step)
    if view.op == "Split":
        return _with_split(view, step)
    dep = view.dep(0)
    if view.op in ("Resize", "Upsample", "CenterCropPad") and dep.axis is not None and view.has(3):
        return stop(Kind.LENGTH, "it specifies the sizes of all axes")
    return step


def _with_target(view: NodeView, step: Step) -> Step:
    """Return the step with the target's size of the cut axis divided.

    A size of 0 or -1, or one computed from the shard, is left as it is.
    """
    dep, target, after = step.outputs[0], view.known(1), view.out_shape()
    if dep.axis is None:
        return step
    if target is None or after is None:
        return stop(Kind.OPAQUE, "its target shape is unknown")
    sizes = target.array.reshape(-1)
    place = dep.axis - (len(after) - sizes.size)
    marks = np.zeros(sizes.size) if target.tainted is None else target.tainted.reshape(-1)
    others = [index for index in range(sizes.size) if index != place]
    if any(marks[index] for index in others) or (place >= 0 and marks[place] == DEPENDENT):
        return stop(
            Kind.LENGTH, "its target shape has another size computed from that of the cut axis"
        )
    is_copying = view.op == "Reshape" and not view.attr("allowzero", 0)
    copied = [index for index in range(sizes.size) if is_copying and sizes[index] == 0]
    if place in copied and (view.dep(0).axis, view.dep(0).outer) != (place, dep.outer):
        return stop(Kind.FACTORED, "its target copies the size of an axis other than the cut one")
    if any(index == view.dep(0).axis for index in copied if index != place):
        return stop(Kind.FACTORED, "its target copies the size of the cut axis to another axis")
    if (
        place < 0
        or marks[place]
        or sizes[place] <= 0
        or (view.op == "Expand" and sizes[place] == 1)
    ):
        return step
    return replace(step, divided={1: place})


def _with_split(view: NodeView, step: Step) -> Step:
    """Return the step with the sizes of a Split divided along the cut axis."""
    dep, rank = view.dep(0), view.rank(0)
    if dep.axis is None or rank is None or view.attr("axis", 0) % rank != dep.axis:
        return step
    if view.has(1):
        if view.constant(1) is None:
            return stop(Kind.LENGTH, "its sizes are unknown")
        return replace(step, divided={1: ALL_ELEMENTS})
    if (sizes := view.attr("split")) is not None:
        return replace(step, attributes={"split": [size // view.positions for size in sizes]})
    return step


# Parameters along the channels: the axis analysis relates each input's axes only by position.


def _channel_parameters(*parameters: int) -> _Special:
    """Return the rule of an operator with parameters along the channels."""

    def step(view: NodeView) -> Step | None:
        dep = view.dep(0)
        if not dep.is_independent or dep.axis != 1 or view.attr("training_mode", 0):
            return None
        if len([name for name in view.proto.output if name]) > 1:
            return None
        cuts = {i: replace(layout_of(dep), axis=0) for i in parameters if view.dep(i).axis is None}
        return Step("through", view.all(dep), cuts)

    return step


def _grouped_conv(weight: int, bias: int) -> _Special:
    """Return the rule of a grouped convolution: each shard has whole groups."""

    def step(view: NodeView) -> Step | None:
        dep, groups, kernels = view.dep(0), view.attr("group", 1), view.size(weight, 0)
        is_channel = dep.is_independent and dep.axis == 1 and dep.outer == 1
        if not is_channel or groups == 1 or kernels is None or view.carriers != [0]:
            return None
        if groups % view.positions:
            return stop(
                Kind.CONTRACTED,
                f"{groups} groups of channels cannot be divided into {view.positions} shards",
            )
        cuts = {weight: Layout(0, 1, kernels // view.positions)}
        channels = (view.out_shape() or (None, None))[1]
        if channels is None:
            return None
        if view.has(bias):
            cuts[bias] = Layout(0, 1, channels // view.positions)
        result = replace(dep, inner=channels // view.positions)
        return Step(
            "through", view.all(result), cuts, attributes={"group": groups // view.positions}
        )

    return step


def _group_norm(view: NodeView) -> Step | None:
    """Return the step of GroupNormalization: each shard has whole groups."""
    dep, groups = view.dep(0), view.attr("num_groups")
    if not dep.is_independent or dep.axis != 1 or dep.outer != 1 or groups % view.positions:
        return None
    cuts = {i: Layout(0, 1, (view.size(i, 0) or 0) // view.positions) for i in (1, 2)}
    return Step("through", view.all(dep), cuts, attributes={"num_groups": groups // view.positions})


def _quantized_axis(view: NodeView) -> Step | None:
    """Return the step of a quantisation with scales for each index of the cut axis."""
    dep, rank, axis = view.dep(0), view.rank(0), view.attr("axis", 1)
    if not dep.is_independent or rank is None or view.rank(1) != 1 or axis % rank != dep.axis:
        return None
    if view.size(1, 0) == 1 or view.attr("block_size", 0):
        return None
    cuts = {
        i: replace(layout_of(dep), axis=0)
        for i in (1, 2)
        if view.has(i) and view.dep(i).axis is None
    }
    return Step("through", view.all(dep), cuts)


_SPECIAL: Mapping[tuple[str, str], _Special] = {
    ("", "BatchNormalization"): _channel_parameters(1, 2, 3, 4),
    ("", "InstanceNormalization"): _channel_parameters(1, 2),
    ("", "GroupNormalization"): _group_norm,
    ("", "Conv"): _grouped_conv(1, 2),
    ("", "ConvTranspose"): _grouped_conv(1, 2),
    ("com.microsoft", "FusedConv"): _grouped_conv(1, 2),
    ("", "DequantizeLinear"): _quantized_axis,
    ("", "QuantizeLinear"): _quantized_axis,
}
"""Rules of operators whose parameters the axis analysis does not relate to the cut axis."""
