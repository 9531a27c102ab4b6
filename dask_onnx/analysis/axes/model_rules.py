"""Rules of operators that are whole layers: recurrent networks, attention, ai.onnx.ml, random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dask_onnx.analysis.axes.dependence import FREE, POSITIONS, Dependence, Kind
from dask_onnx.analysis.axes.layout_rules import reshaped, same_axis
from dask_onnx.analysis.axes.pick_rules import picks_own
from dask_onnx.analysis.axes.view import NodeView, Rule, join

_Axes = Mapping[int, int]
"""Input or output to the axis that carries the batch."""


def batched(
    inputs: _Axes,
    outputs: _Axes,
    *,
    queries: _Axes | None = None,
    kind: Kind = Kind.OPAQUE,
    how: str = "",
    needed: Sequence[int] = (),
) -> Rule:
    """A layer that treats each element of a batch by itself.

    Parameters
    ----------
    inputs, outputs : mapping of position to the axis of the batch
    queries : mapping of input to an axis whose positions go through to the same axis of the first
        output, if no other input carries them (the queries of an attention)
    kind, how : of positions on all other axes
    needed : inputs that must carry the batch too if they are there, and have more than one element
    """

    def rule(v: NodeView) -> Sequence[Dependence]:
        carriers = v.carriers
        if not carriers:
            return v.all(FREE)
        first = v.dep(carriers[0])
        if all(inputs.get(i) == v.dep(i).axis for i in carriers):
            return _through(v, carriers, inputs, outputs, needed or tuple(inputs))
        is_query = queries is not None and len(carriers) == 1
        if is_query and queries is not None and queries.get(carriers[0]) == first.axis:
            rest = v.lost(first, kind, how)
            return [first, *[rest] * (len(v.proto.output) - 1)]
        if any(v.dep(i).axis is not None and i not in inputs for i in carriers):
            return v.all(v.lost(first, Kind.OPAQUE, "positions in a parameter"))
        return v.all(v.lost(first, kind, how))

    return rule


def _through(
    v: NodeView, carriers: Sequence[int], inputs: _Axes, outputs: _Axes, needed: Sequence[int]
) -> Sequence[Dependence]:
    result = next((v.dep(i) for i in carriers if not v.dep(i).is_uniform), v.dep(carriers[0]))
    for index in carriers:
        dep = v.dep(index)
        if not result.has_blocks_of(dep):
            return v.all(v.lost(result, Kind.FACTORED, "different blocks"))
        result = join(result, dep, v.name)
    for index in needed:
        if v.has(index) and index not in carriers and v.size(index, inputs[index]) != 1:
            return v.all(v.lost(result, Kind.LENGTH, "position"))
    return [
        result.at(outputs[i]) if i in outputs else v.lost(result, Kind.OPAQUE, "")
        for i in range(len(v.proto.output))
    ]


def recurrent(v: NodeView) -> Sequence[Dependence]:
    """RNN, GRU, LSTM: (time, batch, features), or (batch, time, features) under layout 1."""
    layout = int(v.attr("layout", 0))
    batch = 0 if layout else 1
    states = dict.fromkeys((5, 6), batch)
    outputs = {0: 0 if layout else 2, 1: batch, 2: batch}
    if v.dep(0).axis == 1 - batch:
        how = "recurrence"
        axis = 1 if layout else 0
        rest = v.lost(v.dep(0), Kind.SCANNED, how)
        steps = v.dep(0).at(axis).broken(Kind.SCANNED, v.name, how)
        return [steps, *[rest] * (len(v.proto.output) - 1)]
    rule = batched({0: batch, 4: 0, **states}, outputs, kind=Kind.CONTRACTED, how="matrix product")
    return rule(v)


def dynamic_quantize(v: NodeView) -> Sequence[Dependence]:
    """DynamicQuantizeLinear: scale and zero point are a statistic over everything."""
    dep = v.dep(0)
    if dep.kind == Kind.FREE:
        return v.all(FREE)
    values = dep.with_coupled(v.name)
    statistic = Dependence(Kind.INDEPENDENT, coupled=v.name)
    return [values, statistic, statistic]


def coupled(rule: Rule) -> Rule:
    """A rule of an operator that quantises its first input dynamically inside."""

    def marked(v: NodeView) -> Sequence[Dependence]:
        return [dep if dep.kind == Kind.FREE else dep.with_coupled(v.name) for dep in rule(v)]

    return marked


def random_like(v: NodeView) -> Sequence[Dependence]:
    """Numbers drawn for each element; whether that may be repeated is asked elsewhere."""
    dep = v.dep(0)
    return v.all(dep if dep.axis is not None else FREE)


def multinomial(v: NodeView) -> Sequence[Dependence]:
    dep = v.dep(0)
    if dep.axis == 1:
        return v.all(v.lost(dep, Kind.REDUCED, "sampling"))
    return v.all(dep)


def dropout(v: NodeView) -> Sequence[Dependence]:
    return v.all(v.dep(0))


def eye_like(v: NodeView) -> Sequence[Dependence]:
    dep = v.dep(0)
    return v.all(dep if dep.kind == Kind.FREE else v.lost(dep, Kind.LENGTH, "positions"))


def embed_layer_norm(v: NodeView) -> Sequence[Dependence]:
    rule = batched(
        {0: 0, 1: 0, 7: 0, 8: 0},
        {0: 0, 1: 0, 2: 0},
        kind=Kind.LENGTH,
        how="position",
    )
    return rule(v)


def zip_map(v: NodeView) -> Sequence[Dependence]:
    """A list of maps, one for each row."""
    dep = v.dep(0)
    return v.all(dep if dep.axis in (None, 0) else v.lost(dep, Kind.REDUCED, "features"))


def normalizer(v: NodeView) -> Sequence[Dependence]:
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is not None and rank is not None and dep.axis == rank - 1:
        return v.all(dep.broken(Kind.REDUCED, v.name, "norm"))
    return v.all(dep)


def array_feature_extractor(v: NodeView) -> Sequence[Dependence]:
    dep, rank, indices = v.dep(0), v.rank(0), v.dep(1)
    if indices.axis is None:
        if dep.axis is not None and (rank is None or dep.axis == rank - 1):
            return v.all(v.lost(dep, Kind.GATHERED, "indices"))
        return v.all(dep)
    shape = v.shape(1)
    if dep.axis is not None or rank is None or shape is None or None in shape:
        return v.all(v.lost(dep, Kind.PAIRED, "indices"))
    # The indices are read as one list, for each of which the last axis has an element.
    count = math.prod(size or 0 for size in shape)
    flat = reshaped(indices, shape, (count,), v.name)
    return v.all(flat if flat.axis is None else flat.at(max(rank, 2) - 1))


def feature_vectorizer(v: NodeView) -> Sequence[Dependence]:
    result = same_axis(v, v.carriers, v.name) if v.carriers else FREE
    if result.axis not in (None, 0):
        return v.all(v.lost(result, Kind.GATHERED, "concatenation"))
    for index in range(len(v.ins)):
        if result.axis == 0 and v.dep(index).axis is None:
            return v.all(result.broken(Kind.LENGTH, v.name, "position"))
    return v.all(result)


def appended_axis(v: NodeView) -> Sequence[Dependence]:
    """Every element becomes a vector (OneHotEncoder): a new last axis."""
    return v.all(v.dep(0))


def text_rows(v: NodeView) -> Sequence[Dependence]:
    """Vectors of counts for each row of tokens, which lie on the last axis (TfIdfVectorizer)."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if dep.axis == 0 and (rank is None or rank > 1) and dep.how == PADDED:
        own = replace(dep, kind=Kind.INDEPENDENT, node="", how="", is_resized=False)
        return v.all(own)
    if rank is None or dep.axis == rank - 1:
        return v.all(v.lost(dep, Kind.REDUCED, "counts"))
    return v.all(dep)


PADDED = "padding to the longest"
"""How tokens of several texts depend on each other: counting n-grams leaves the padding out."""


def tokenizer(v: NodeView) -> Sequence[Dependence]:
    """Every text becomes a list of tokens on a new last axis, as long as the longest of all."""
    dep = v.dep(0)
    return v.all(dep if dep.axis is None else dep.resized(v.name, PADDED, Kind.GATHERED))


def string_split(v: NodeView) -> Sequence[Dependence]:
    """Every text becomes a list of parts, as long as the longest of all; and their number."""
    dep = v.dep(0)
    return [tokenizer(v)[0], dep][: len(v.proto.output)]


def string_normalizer(v: NodeView) -> Sequence[Dependence]:
    """Drops stopwords: then the number of elements depends on the values."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is not None and v.attr("stopwords"):
        return v.all(v.lost(dep, Kind.GATHERED, "selection by value"))
    if dep.axis is not None and rank == 2 and dep.axis == 0:
        return v.opaque("one row only")
    return v.all(dep)


def reversed_blocks(v: NodeView) -> Sequence[Dependence]:
    """Col2Im: blocks of the last axes go to places that are computed."""
    dep = v.dep(0)
    if dep.axis in (None, 0):
        return v.all(dep)
    return v.all(v.lost(dep, Kind.GATHERED, "places"))


def max_unpool(v: NodeView) -> Sequence[Dependence]:
    """MaxUnpool: to places in the whole tensor, which are a row's own if MaxPool has found them in
    rows of the same size."""
    dep, places, after = v.dep(0), v.dep(1), v.out_shape()
    if not v.carriers:
        return v.all(join(dep, places, v.name))
    if dep.axis == places.axis == 0 and places.index is not None and after and None not in after:
        elements = math.prod(size or 0 for size in after[1:])
        is_own = (dep.outer, dep.inner) == (places.outer, places.inner) == (1, 1)
        if is_own and picks_own(places.index, elements):
            return v.all(dep)
    return v.all(v.lost(dep, Kind.GATHERED, "places"))


def flatten(v: NodeView) -> Sequence[Dependence]:
    dep, before, after = v.dep(0), v.shape(0), v.out_shape()
    if dep.axis is None:
        return v.all(dep)
    if dep.axis == 0 and v.attr("axis", 1) == 1:
        return v.all(dep)
    if before is None or after is None:
        return v.opaque("unknown shape")
    return v.all(reshaped(dep, before, after, v.name))


def spectrum(v: NodeView) -> Sequence[Dependence]:
    """DFT and STFT: along the signal every sample meets every other."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if rank is None:
        return v.opaque("unknown rank")
    if v.op == "STFT":
        is_batch = dep.axis == 0 and v.carriers == [0]
        return v.all(dep if is_batch else v.lost(dep, Kind.GATHERED, "frames"))
    axis = v.constant(2) if v.opset >= 20 else None
    if v.op == "DFT" and v.opset >= 20 and v.has(2) and axis is None:
        return v.opaque("unknown axis")
    along = (
        int(axis.reshape(-1)[0]) if axis is not None else v.attr("axis", 1 if v.opset < 20 else -2)
    )
    if along % rank == dep.axis or dep.axis == rank - 1:
        return v.all(v.lost(dep, Kind.CONTRACTED, "transform"))
    return v.all(dep)


def loss(v: NodeView) -> Sequence[Dependence]:
    """Losses: without a reduction one number for each row."""
    result = same_axis(v, v.carriers, v.name) if v.carriers else FREE
    if result.axis is None:
        return v.all(result)
    is_reduced = v.attr("reduction", b"mean") != b"none"
    if is_reduced or result.axis != 0:
        return v.all(v.lost(result, Kind.REDUCED, "mean"))
    if any(v.has(i) and v.dep(i).axis is None for i in (0, 1)):
        return v.all(result.broken(Kind.LENGTH, v.name, "position"))
    return v.all(replace(result))


def affine_grid(v: NodeView) -> Sequence[Dependence]:
    dep = v.dep(0)
    if dep.axis not in (None, 0):
        return v.all(v.lost(dep, Kind.OPAQUE, "parameters"))
    return v.all(dep)


def roi_align(v: NodeView) -> Sequence[Dependence]:
    """Boxes by themselves; the pictures that they pick from are given once."""
    boxes, picks = v.dep(1), v.dep(2)
    blocks = {(v.dep(i).outer, v.dep(i).inner) for i in v.carriers}
    if v.dep(0).axis == boxes.axis == 0 and picks.index == POSITIONS and blocks == {(1, 1)}:
        return v.all(join(v.dep(0), boxes, v.name))
    if v.dep(0).axis is not None or boxes.axis != 0 or picks.axis != 0:
        return v.opaque("boxes of pictures") if v.carriers else v.all(FREE)
    if not boxes.has_blocks_of(picks):
        return v.opaque("different blocks")
    return v.all(join(boxes, picks, v.name))


def roi_pool(v: NodeView) -> Sequence[Dependence]:
    """MaxRoiPool: boxes by themselves, of pictures that are given once."""
    boxes = v.dep(1)
    if v.dep(0).axis is not None or boxes.axis != 0:
        return v.opaque("boxes of pictures") if v.carriers else v.all(FREE)
    return v.all(boxes)


def tensor_scatter(v: NodeView) -> Sequence[Dependence]:
    """TensorScatter: an update written into a cache, at a place for each element of the batch."""
    rank = v.rank(0)
    if not v.carriers:
        return v.all(FREE)
    if rank is None or v.attr("axis", -2) % rank == 0:
        return v.opaque("axis of the batch")
    return batched({0: 0, 1: 0, 2: 0}, {0: 0}, how="places")(v)


def stepwise(inputs: _Axes) -> Rule:
    """A layer with a state that it hands from token to token, and a batch on the first axis."""
    return batched(inputs, {0: 0, 1: 0}, kind=Kind.SCANNED, how="recurrence")


def moe(v: NodeView) -> Sequence[Dependence]:
    """Mixture of experts: every token by itself, through the experts that its scores pick."""
    data, scores = v.dep(0), v.dep(1)
    rank = v.rank(0)
    if not v.carriers:
        return v.all(FREE)
    if rank != 2 or data.axis != 0 or scores.axis != 0 or not data.has_blocks_of(scores):
        return v.opaque("experts")
    return v.all(join(data, scores, v.name))


def pairs_of_rows(v: NodeView) -> Sequence[Dependence]:
    """CDist: the distance of every row of one input from every row of the other."""
    a, b = v.dep(0), v.dep(1)
    if a.axis is not None and b.axis is not None:
        return v.all(v.lost(a, Kind.PAIRED, "distances"))
    if a.axis is not None:
        return v.all(a if a.axis == 0 else v.lost(a, Kind.CONTRACTED, "distances"))
    if b.axis is not None:
        return v.all(b.at(1) if b.axis == 0 else v.lost(b, Kind.CONTRACTED, "distances"))
    return v.all(FREE)
