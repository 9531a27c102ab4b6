"""Nodes that hand shards on: by the algebra of axes, with parameters and shapes cut to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.axes.propagate import Walk
from dask_onnx.analysis.axes.view import DEPENDENT, NodeView
from dask_onnx.sharding.attention_cuts import ATTENTION
from dask_onnx.sharding.bits_cuts import is_packed, packed_rows
from dask_onnx.sharding.node_cuts import (
    EVERY,
    Step,
    dependence_of,
    layout_of,
    stop,
    sum_step,
    weights_of,
)
from dask_onnx.sharding.rule_asking import ask_rule, seeing
from dask_onnx.sharding.shard_layout import Layout

_Special = Callable[[NodeView], Step | None]


def pass_step(walk: Walk, v: NodeView, is_constant: Callable[[str], bool]) -> Step:
    """Return what a node does with the shards of its inputs."""
    for weight in weights_of(v):
        dep = v.dep(weight.data)
        is_summed = dep.is_own and dep.axis == weight.contracted
        if is_summed and is_constant(v.proto.input[weight.weight]):
            return sum_step(v, weight)
    if is_packed(v) and v.dep(0).is_own and v.dep(0).axis == (v.rank(0) or 0) - 1:
        return (
            packed_rows(v) if is_constant(v.proto.input[1]) else stop(Kind.CONTRACTED, "no weights")
        )
    special = ATTENTION.get((v.proto.domain, v.op)) or _SPECIAL.get((v.proto.domain, v.op))
    step = special(v) if special is not None else None
    return step or _by_algebra(walk, v)


def _by_algebra(walk: Walk, v: NodeView) -> Step:
    """By the operator's rule; operands that are whole on the cut axis are cut if that helps."""
    found = ask_rule(walk, v)
    if _goes_through(v, found):
        return _with_shapes(v, found, {})
    cuts = _aligned(v)
    if cuts:
        ins = [dependence_of(cuts[i]) if i in cuts else dep for i, dep in enumerate(v.ins)]
        tried = ask_rule(walk, seeing(v, ins))
        if _goes_through(v, tried):
            return _with_shapes(v, tried, cuts)
    broken = next((d for d in found if d.is_broken or d.coupled), found[0])
    if broken.kind == Kind.FACTORED and v.op == "Reshape":
        return stop(Kind.FACTORED, _blocks_in_words(v))
    if broken.coupled:
        reason = "takes a quantisation statistic over all of it"
        return replace(stop(Kind.REDUCED, reason), couples=True)
    how = f" ({broken.how})" if broken.how else ""
    return stop(broken.kind, f"{broken.kind.label}{how}")


def _goes_through(v: NodeView, found: Sequence[Dependence]) -> bool:
    """Whether each output is made of shards, or of nothing that is cut."""
    outputs = [dep for name, dep in zip(v.proto.output, found, strict=False) if name]
    own = all(dep.is_own or dep.kind == Kind.FREE for dep in outputs)
    return own and not any(dep.coupled for dep in outputs)


def _aligned(v: NodeView) -> dict[int, Layout]:
    """How whole operands would be cut on the axis that they share with a cut one."""
    carriers = [i for i in v.carriers if v.dep(i).is_own]
    if not carriers:
        return {}
    lead = v.dep(carriers[0])
    cuts = {}
    for index in range(len(v.proto.input)):
        shape = v.shape(index)
        if index in carriers or shape is None:
            continue
        axis = _same_axis(v, carriers[0], index)
        size = shape[axis] if 0 <= axis < len(shape) else None
        if size is not None and size > 1 and not size % (lead.outer * v.positions):
            cuts[index] = Layout(axis, lead.outer, size // (lead.outer * v.positions))
    return cuts


def _same_axis(v: NodeView, lead: int, other: int) -> int:
    """The axis of one input that stands for the cut axis of another: by an Einsum's letters, else
    counted from the end; -1 for none."""
    axis = v.dep(lead).axis or 0
    if v.op == "Einsum":
        terms = v.attr("equation", b"").decode().replace(" ", "").partition("->")[0].split(",")
        return terms[other].find(terms[lead][axis]) if "." not in terms[lead] else -1
    return (v.rank(other) or 0) - (v.rank(lead) or 0) + axis


def _blocks_in_words(v: NodeView) -> str:
    """Why the shards of a value end inside the blocks that a Reshape makes of an axis."""
    dep, before, after = v.dep(0), v.shape(0), v.out_shape()
    size = None if before is None or dep.axis is None else before[dep.axis]
    if after is None or size is None:
        return "its shards end inside blocks of the new shape"
    return (
        f"an axis of {size} becomes {tuple(after)}: {v.positions} shards of "
        f"{size // v.positions} end inside its blocks"
    )


def _with_shapes(v: NodeView, found: Sequence[Dependence], cuts: Mapping[int, Layout]) -> Step:
    """Add what becomes of operands and attributes that name sizes of the cut axis."""
    step = Step("through", found, cuts)
    if v.proto.domain:
        return step
    if v.op in ("Reshape", "Expand"):
        return _with_target(v, step)
    if v.op == "Split":
        return _with_split(v, step)
    dep = v.dep(0)
    if v.op in ("Resize", "Upsample", "CenterCropPad") and dep.axis is not None and v.has(3):
        return stop(Kind.LENGTH, "sizes of all axes are given")
    return step


def _with_target(v: NodeView, step: Step) -> Step:
    """Divide the size of the cut axis in a target shape, unless it follows from the input."""
    dep, target, after = step.outputs[0], v.known(1), v.out_shape()
    if dep.axis is None:
        return step
    if target is None or after is None:
        return stop(Kind.OPAQUE, "its target shape is unknown")
    sizes = target.array.reshape(-1)
    place = dep.axis - (len(after) - sizes.size)
    marks = np.zeros(sizes.size) if target.tainted is None else target.tainted.reshape(-1)
    others = [index for index in range(sizes.size) if index != place]
    if any(marks[index] for index in others) or (place >= 0 and marks[place] == DEPENDENT):
        return stop(Kind.LENGTH, "its target shape has another size made of the cut one")
    is_copying = v.op == "Reshape" and not v.attr("allowzero", 0)
    copied = [index for index in range(sizes.size) if is_copying and sizes[index] == 0]
    if place in copied and (v.dep(0).axis, v.dep(0).outer) != (place, dep.outer):
        return stop(Kind.FACTORED, "its target copies another size than the cut one")
    if any(index == v.dep(0).axis for index in copied if index != place):
        return stop(Kind.FACTORED, "its target copies the size that is cut")
    if place < 0 or marks[place] or sizes[place] <= 0 or (v.op == "Expand" and sizes[place] == 1):
        return step
    return replace(step, divided={1: place})


def _with_split(v: NodeView, step: Step) -> Step:
    """Divide the sizes of a Split along the cut axis."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None or rank is None or v.attr("axis", 0) % rank != dep.axis:
        return step
    if v.has(1):
        if v.constant(1) is None:
            return stop(Kind.LENGTH, "its sizes are not known")
        return replace(step, divided={1: EVERY})
    if (sizes := v.attr("split")) is not None:
        return replace(step, attributes={"split": [size // v.positions for size in sizes]})
    return step


# Operators whose parameters lie along the channels, which the algebra takes for one axis alone.


def _channel_parameters(*parameters: int) -> _Special:
    def step(v: NodeView) -> Step | None:
        dep = v.dep(0)
        if not dep.is_own or dep.axis != 1 or v.attr("training_mode", 0):
            return None
        if len([name for name in v.proto.output if name]) > 1:
            return None
        cuts = {i: replace(layout_of(dep), axis=0) for i in parameters if v.dep(i).axis is None}
        return Step("through", v.all(dep), cuts)

    return step


def _grouped_conv(weight: int, bias: int) -> _Special:
    """A convolution in groups of channels, each shard with whole groups."""

    def step(v: NodeView) -> Step | None:
        dep, groups, kernels = v.dep(0), v.attr("group", 1), v.size(weight, 0)
        is_channel = dep.is_own and dep.axis == 1 and dep.outer == 1
        if not is_channel or groups == 1 or kernels is None or v.carriers != [0]:
            return None
        if groups % v.positions:
            return stop(
                Kind.CONTRACTED, f"{groups} groups of channels are not {v.positions} shards"
            )
        cuts = {weight: Layout(0, 1, kernels // v.positions)}
        channels = (v.out_shape() or (None, None))[1]
        if channels is None:
            return None
        if v.has(bias):
            cuts[bias] = Layout(0, 1, channels // v.positions)
        result = replace(dep, inner=channels // v.positions)
        return Step("through", v.all(result), cuts, attributes={"group": groups // v.positions})

    return step


def _group_norm(v: NodeView) -> Step | None:
    dep, groups = v.dep(0), v.attr("num_groups")
    if not dep.is_own or dep.axis != 1 or dep.outer != 1 or groups % v.positions:
        return None
    cuts = {i: Layout(0, 1, (v.size(i, 0) or 0) // v.positions) for i in (1, 2)}
    return Step("through", v.all(dep), cuts, attributes={"num_groups": groups // v.positions})


def _quantized_axis(v: NodeView) -> Step | None:
    """Scales and zero points of their own for each index of the cut axis."""
    dep, rank, axis = v.dep(0), v.rank(0), v.attr("axis", 1)
    if not dep.is_own or rank is None or v.rank(1) != 1 or axis % rank != dep.axis:
        return None
    if v.size(1, 0) == 1 or v.attr("block_size", 0):
        return None
    cuts = {
        i: replace(layout_of(dep), axis=0) for i in (1, 2) if v.has(i) and v.dep(i).axis is None
    }
    return Step("through", v.all(dep), cuts)


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
