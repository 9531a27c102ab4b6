"""Rules of whole layers: recurrent networks, ai.onnx.ml, losses, random numbers, regions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dask_onnx.analysis.axes.dependence import FREE, POSITIONS, Dependence, Kind
from dask_onnx.analysis.axes.layout_rules import reshaped, same_axis
from dask_onnx.analysis.axes.pick_rules import picks_own_elements
from dask_onnx.analysis.axes.view import NodeView, Rule, join

_Axes = Mapping[int, int]
"""Index of an input or output to the axis of the batch in it."""


def batched(
    inputs: _Axes,
    outputs: _Axes,
    *,
    queries: _Axes | None = None,
    kind: Kind = Kind.OPAQUE,
    how: str = "",
    needed: Sequence[int] = (),
) -> Rule:
    """Return the rule of a layer that computes each element of a batch separately.

    Parameters
    ----------
    inputs, outputs : mapping of index to axis
        Axis of the batch in each input and output that has it.
    queries : mapping of input to axis, optional
        Axis whose positions keep their place in the first output if no other input carries them,
        such as the query tokens of an attention.
    kind, how : Kind, str
        Kind, and its reason, of positions on all other axes.
    needed : sequence of int
        Inputs that must carry the batch, if present and of size other than 1 on its axis; by
        default all of `inputs`.
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
    """Return the outputs' dependences where the positions are the batch."""
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
    """Follow positions through RNN, GRU and LSTM.

    The input has shape (time, batch, features), or (batch, time, features) with layout=1.
    """
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
    """Mark the outputs of DynamicQuantizeLinear as coupled by scale and zero point."""
    dep = v.dep(0)
    if dep.kind == Kind.FREE:
        return v.all(FREE)
    values = dep.with_coupled(v.name)
    statistic = Dependence(Kind.INDEPENDENT, coupled=v.name)
    return [values, statistic, statistic]


def coupled(rule: Rule) -> Rule:
    """Return `rule` for an operator that quantises its first input dynamically."""

    def marked(v: NodeView) -> Sequence[Dependence]:
        return [dep if dep.kind == Kind.FREE else dep.with_coupled(v.name) for dep in rule(v)]

    return marked


def random_like(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through RandomNormalLike and others, which draw each element separately.

    With a seed, each run draws the same numbers in the order of the elements, so that an element
    depends on its place. `analysis.randomness` reports random nodes themselves.
    """
    dep = v.dep(0)
    if dep.axis is None:
        return v.all(FREE)
    return v.all(_drawn_in_order(v, dep))


def _drawn_in_order(v: NodeView, dep: Dependence) -> Dependence:
    """Return `dep`, broken if the node has a seed."""
    if dep.axis is None or v.attr("seed") is None:
        return dep
    return dep.broken(Kind.LENGTH, v.name, "numbers drawn in order from a seed")


def multinomial(v: NodeView) -> Sequence[Dependence]:
    """Follow rows through Multinomial, which samples over axis 1."""
    dep = v.dep(0)
    if dep.axis == 1:
        return v.all(v.lost(dep, Kind.REDUCED, "sampling"))
    return v.all(dep)


def dropout(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Dropout, to the output and the mask; training draws numbers."""
    dep = v.dep(0)
    if v.opset < 12 or not v.has(2):
        return v.all(dep)
    is_training = v.constant(2)
    return v.all(
        dep if is_training is not None and not is_training.any() else _drawn_in_order(v, dep)
    )


def eye_like(v: NodeView) -> Sequence[Dependence]:
    """Return kind LENGTH for EyeLike, which reads the shape of its input only."""
    dep = v.dep(0)
    return v.all(dep if dep.kind == Kind.FREE else v.lost(dep, Kind.LENGTH, "positions"))


def embed_layer_norm(v: NodeView) -> Sequence[Dependence]:
    """Follow the batch through com.microsoft EmbedLayerNormalization."""
    rule = batched(
        {0: 0, 1: 0, 7: 0, 8: 0},
        {0: 0, 1: 0, 2: 0},
        kind=Kind.LENGTH,
        how="position",
    )
    return rule(v)


def zip_map(v: NodeView) -> Sequence[Dependence]:
    """Follow rows through ZipMap, which returns a list with one map for each row."""
    dep = v.dep(0)
    return v.all(dep if dep.axis in (None, 0) else v.lost(dep, Kind.REDUCED, "features"))


def normalizer(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through ai.onnx.ml Normalizer, which takes norms along the last axis."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is not None and rank is not None and dep.axis == rank - 1:
        return v.all(dep.broken(Kind.REDUCED, v.name, "norm"))
    return v.all(dep)


def array_feature_extractor(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through ArrayFeatureExtractor, which gathers along the last axis."""
    dep, rank, indices = v.dep(0), v.rank(0), v.dep(1)
    if indices.axis is None:
        if dep.axis is not None and (rank is None or dep.axis == rank - 1):
            return v.all(v.lost(dep, Kind.GATHERED, "indices"))
        return v.all(dep)
    shape = v.shape(1)
    if dep.axis is not None or rank is None or shape is None or None in shape:
        return v.all(v.lost(dep, Kind.PAIRED, "indices"))
    # The indices are flattened; the output's last axis has one element for each.
    count = math.prod(size or 0 for size in shape)
    flat = reshaped(indices, shape, (count,), v.name)
    return v.all(flat if flat.axis is None else flat.at(max(rank, 2) - 1))


def feature_vectorizer(v: NodeView) -> Sequence[Dependence]:
    """Follow rows through FeatureVectorizer, which concatenates features."""
    result = same_axis(v, v.carriers, v.name) if v.carriers else FREE
    if result.axis not in (None, 0):
        return v.all(v.lost(result, Kind.GATHERED, "concatenation"))
    for index in range(len(v.ins)):
        if result.axis == 0 and v.dep(index).axis is None:
            return v.all(result.broken(Kind.LENGTH, v.name, "position"))
    return v.all(result)


def appended_axis(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through OneHotEncoder, which appends an axis."""
    return v.all(v.dep(0))


def text_rows(v: NodeView) -> Sequence[Dependence]:
    """Follow rows through TfIdfVectorizer, which counts n-grams along the last axis."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if dep.axis == 0 and (rank is None or rank > 1) and dep.how == PADDED:
        # Padding is no token, so counts do not depend on the longest text.
        return v.all(replace(dep, kind=Kind.INDEPENDENT, node="", how="", is_resized=False))
    if rank is None or dep.axis == rank - 1:
        return v.all(v.lost(dep, Kind.REDUCED, "counts"))
    return v.all(dep)


PADDED = "padding to the longest"
"""`Dependence.how` of token lists that are padded to the longest text of the batch."""


def tokenizer(v: NodeView) -> Sequence[Dependence]:
    """Follow texts through Tokenizer, which appends an axis of tokens, padded to the longest."""
    dep = v.dep(0)
    return v.all(dep if dep.axis is None else dep.resized(v.name, PADDED, Kind.GATHERED))


def string_split(v: NodeView) -> Sequence[Dependence]:
    """Follow texts through StringSplit: padded parts on a new last axis, and their numbers."""
    dep = v.dep(0)
    return [tokenizer(v)[0], dep][: len(v.proto.output)]


def string_normalizer(v: NodeView) -> Sequence[Dependence]:
    """Follow texts through StringNormalizer, which may drop texts that are stop words."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is not None and v.attr("stopwords"):
        return v.all(v.lost(dep, Kind.GATHERED, "selection by value"))
    if dep.axis is not None and rank == 2 and dep.axis == 0:
        return v.opaque("accepts one row only")
    return v.all(dep)


def reversed_blocks(v: NodeView) -> Sequence[Dependence]:
    """Follow the batch through Col2Im, which adds up blocks at computed positions."""
    dep = v.dep(0)
    if dep.axis in (None, 0):
        return v.all(dep)
    return v.all(v.lost(dep, Kind.GATHERED, "computed indices"))


def max_unpool(v: NodeView) -> Sequence[Dependence]:
    """Follow rows through MaxUnpool, which scatters by indices into the flattened tensor.

    Rows are independent if the indices come from a MaxPool over rows of the output's size.
    """
    dep, places, after = v.dep(0), v.dep(1), v.out_shape()
    if not v.carriers:
        return v.all(join(dep, places, v.name))
    if dep.axis == places.axis == 0 and places.index is not None and after and None not in after:
        elements = math.prod(size or 0 for size in after[1:])
        is_plain = (dep.outer, dep.inner) == (places.outer, places.inner) == (1, 1)
        if is_plain and picks_own_elements(places.index, elements):
            return v.all(dep)
    return v.all(v.lost(dep, Kind.GATHERED, "computed indices"))


def flatten(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Flatten."""
    dep, before, after = v.dep(0), v.shape(0), v.out_shape()
    if dep.axis is None:
        return v.all(dep)
    if dep.axis == 0 and v.attr("axis", 1) == 1:
        return v.all(dep)
    if before is None or after is None:
        return v.opaque("unknown shape")
    return v.all(reshaped(dep, before, after, v.name))


def spectrum(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through DFT and STFT; along the signal all samples are combined."""
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
    """Follow rows through losses; with reduction="none" each row has its own loss."""
    result = same_axis(v, v.carriers, v.name) if v.carriers else FREE
    if result.axis is None:
        return v.all(result)
    is_reduced = v.attr("reduction", b"mean") != b"none"
    if is_reduced or result.axis != 0:
        return v.all(v.lost(result, Kind.REDUCED, "mean"))
    if any(v.has(i) and v.dep(i).axis is None for i in (0, 1)):
        return v.all(result.broken(Kind.LENGTH, v.name, "position"))
    return v.all(result)


def affine_grid(v: NodeView) -> Sequence[Dependence]:
    """Follow the batch through AffineGrid, whose other sizes must not follow from it."""
    dep, size = v.dep(0), v.known(1)
    if dep.axis not in (None, 0):
        return v.all(v.lost(dep, Kind.OPAQUE, "parameters"))
    if size is None or not size.is_tainted:
        return v.all(dep)
    if dep.axis is None:
        return v.all(v.broken(Kind.LENGTH, "size"))
    return v.all(dep.resized(v.name, "size") if size.marks.reshape(-1)[1:].any() else dep)


def roi_align(v: NodeView) -> Sequence[Dependence]:
    """Follow boxes through RoiAlign and CropAndResize.

    Boxes are independent of each other if the images do not carry the positions, or if each box
    reads the image of its own position.
    """
    boxes, picks = v.dep(1), v.dep(2)
    blocks = {(v.dep(i).outer, v.dep(i).inner) for i in v.carriers}
    if v.dep(0).axis == boxes.axis == 0 and picks.index == POSITIONS and blocks == {(1, 1)}:
        return v.all(join(v.dep(0), boxes, v.name))
    if v.dep(0).axis is not None or boxes.axis != 0 or picks.axis != 0:
        return v.opaque("boxes of several images") if v.carriers else v.all(FREE)
    if not boxes.has_blocks_of(picks):
        return v.opaque("different blocks")
    return v.all(join(boxes, picks, v.name))


def roi_pool(v: NodeView) -> Sequence[Dependence]:
    """Follow boxes through MaxRoiPool over images that do not carry the positions."""
    boxes = v.dep(1)
    if v.dep(0).axis is not None or boxes.axis != 0:
        return v.opaque("boxes of several images") if v.carriers else v.all(FREE)
    return v.all(boxes)


def tensor_scatter(v: NodeView) -> Sequence[Dependence]:
    """Follow the batch through TensorScatter, which writes updates into a cache."""
    rank = v.rank(0)
    if not v.carriers:
        return v.all(FREE)
    if rank is None or v.attr("axis", -2) % rank == 0:
        return v.opaque("written along the batch")
    return batched({0: 0, 1: 0, 2: 0}, {0: 0}, how="computed indices")(v)


def stepwise(inputs: _Axes) -> Rule:
    """Return the rule of a recurrent layer with the batch on the first axis of its outputs."""
    return batched(inputs, {0: 0, 1: 0}, kind=Kind.SCANNED, how="recurrence")


def moe(v: NodeView) -> Sequence[Dependence]:
    """Follow tokens through a mixture of experts; each uses the experts that its scores select."""
    data, scores = v.dep(0), v.dep(1)
    rank = v.rank(0)
    if not v.carriers:
        return v.all(FREE)
    if rank != 2 or data.axis != 0 or scores.axis != 0 or not data.has_blocks_of(scores):
        return v.opaque("experts")
    return v.all(join(data, scores, v.name))


def pairs_of_rows(v: NodeView) -> Sequence[Dependence]:
    """Follow rows of either input through CDist, the matrix of distances between rows."""
    a, b = v.dep(0), v.dep(1)
    if a.axis is not None and b.axis is not None:
        return v.all(v.lost(a, Kind.PAIRED, "distances"))
    if a.axis is not None:
        return v.all(a if a.axis == 0 else v.lost(a, Kind.CONTRACTED, "distances"))
    if b.axis is not None:
        return v.all(b.at(1) if b.axis == 0 else v.lost(b, Kind.CONTRACTED, "distances"))
    return v.all(FREE)
