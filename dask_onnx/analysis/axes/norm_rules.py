"""Rules of normalisations: layers, channels, instances and batches."""

from __future__ import annotations

from collections.abc import Sequence

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.axes.value_rules import broadcast, with_parameters
from dask_onnx.analysis.axes.view import NodeView


def layer_norm(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through LayerNormalization and RMSNormalization.

    Both normalise an axis and all behind it; scale and bias are broadcast to the input.
    """
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(with_parameters(v, dep))
    if rank is None:
        return v.opaque("unknown rank")
    if dep.axis >= v.attr("axis", -1) % rank:
        return v.all(with_parameters(v, dep).broken(Kind.REDUCED, v.name, "mean"))
    own = broadcast(v, range(len(v.ins)), rank)
    if own.axis is None or len(v.proto.output) == 1:
        return v.all(own)
    # The statistics do not depend on scale and bias.
    return [own, *v.all(dep)[1:]]


def skip_layer_norm(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through com.microsoft SkipLayerNormalization, which adds an input first."""
    dep, rank = with_parameters(v, broadcast(v, (0, 1)), 2), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if rank is None:
        return v.opaque("unknown rank")
    if dep.axis == rank - 1:
        return v.all(dep.broken(Kind.REDUCED, v.name, "mean"))
    return v.all(dep)


def spatial_norm(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through InstanceNormalization and GroupNormalization.

    Both reduce over the spatial axes, GroupNormalization over channels too.
    """
    dep = v.dep(0)
    if dep.axis is None:
        return v.all(with_parameters(v, dep))
    is_grouped = "Group" in v.op
    if dep.axis >= (1 if is_grouped else 2):
        return v.all(dep.broken(Kind.REDUCED, v.name, "mean"))
    if dep.axis == 1:
        return v.all(dep.broken(Kind.LENGTH, v.name, "parameter of a channel"))
    return v.all(with_parameters(v, dep))


def batch_norm(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through BatchNormalization; training reduces over all but channels."""
    dep = with_parameters(v, v.dep(0))
    is_training = bool(v.attr("training_mode", 0))
    if v.opset < 14 and not is_training:
        is_training = len([o for o in v.proto.output if o]) > 1
    if is_training and dep.axis is not None and dep.axis != 1:
        own = dep.broken(Kind.REDUCED, v.name, "mean")
        rest = v.lost(dep, Kind.REDUCED, "mean")
        return [own, *[rest] * (len(v.proto.output) - 1)]
    has_own_parameter = dep.axis == 1 or (v.attr("spatial", 1) == 0 and dep.axis not in (None, 0))
    if has_own_parameter:  # before opset 9, spatial=0 has one for each element
        return v.all(dep.broken(Kind.LENGTH, v.name, "parameter of a channel"))
    return v.all(dep)


def mean_variance_norm(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through MeanVarianceNormalization."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if rank is None:
        return v.opaque("unknown rank")
    if dep.axis in {a % rank for a in v.attr("axes", [0, 2, 3]) if a < rank}:
        return v.all(dep.broken(Kind.REDUCED, v.name, "mean"))
    return v.all(dep)
