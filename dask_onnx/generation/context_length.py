"""Length of a decoder's context, as the tables of positions in its graph have it."""

from __future__ import annotations

import onnx

from dask_onnx.generation.decoder_form import DecoderForm
from dask_onnx.modelio.weights import graphs_of

_COPIES = ("Cast", "Identity")
"""Operators behind which positions are still positions."""
_COS_CACHE = 7
"""Position of the table of cosines among the inputs of GroupQueryAttention."""


def context_of_graph(model: onnx.ModelProto, form: DecoderForm) -> int | None:
    """Return the number of positions of the shortest table of positions; None if there is none.

    Tables are initializers from which the input of positions gathers rows, and those of rotary
    embeddings in GroupQueryAttention.

    Parameters
    ----------
    model : onnx.ModelProto
        Weightless proto.
    form : DecoderForm
        Roles of its inputs.
    """
    sizes: dict[str, int] = {}
    places = set() if form.positions is None else {form.positions.name}
    tables: list[str] = []
    for graph in graphs_of(model):
        sizes |= {each.name: each.dims[0] for each in graph.initializer if len(each.dims) == 2}
        for node in graph.node:
            if node.op_type in _COPIES and node.input[0] in places:
                places.add(node.output[0])
    for graph in graphs_of(model):
        for node in graph.node:
            axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
            if node.op_type == "Gather" and node.input[1] in places and axis == 0:
                tables.append(node.input[0])
            if node.op_type == "GroupQueryAttention" and len(node.input) > _COS_CACHE:
                tables.append(node.input[_COS_CACHE])
    return min((sizes[name] for name in tables if name in sizes), default=None)
