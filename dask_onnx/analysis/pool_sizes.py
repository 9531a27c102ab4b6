"""Output sizes of pooling with ``ceil_mode``, as ONNX Runtime computes them.

ONNX's shape inference counts every window that rounding up asks for. ONNX Runtime's kernels, like
PyTorch's, drop the last window if it starts beyond the input and its padding at the start
(https://github.com/onnx/onnx/pull/5741), which happens above all where the stride is longer than
the kernel. The kernels' sizes are the ones that count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from dask_onnx.modelio.weights import with_bodies

_POOLS = frozenset(("MaxPool", "AveragePool", "LpPool"))


def floor_padding(
    kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> list[int]:
    """Return the padding with which rounding down gives ONNX Runtime's sizes for rounding up.

    Rounding up keeps the windows that start no later than ``size + pads - reach - 1 + stride - 1``,
    where ``reach`` is the distance from the first to the last element of a window; of those, ONNX
    Runtime keeps the ones that start before ``size + start padding``. Both are one window count
    with padding at the end of ``min(reach, end padding + stride - 1)``, whatever the input's size.

    Parameters
    ----------
    kernel, strides, dilations : sequence of int
        One for each spatial axis.
    pads : sequence of int
        Padding at the start of each spatial axis, then at the end of each.

    Returns
    -------
    list of int
        Laid out like `pads`.
    """
    ends = zip(kernel, strides, dilations, pads[len(kernel) :], strict=True)
    return [
        *pads[: len(kernel)],
        *(min(gap * (width - 1), pad + step - 1) for width, step, gap, pad in ends),
    ]


def round_pools_down(model: onnx.ModelProto) -> None:
    """Rewrite pooling with ``ceil_mode`` so that ONNX infers the sizes of ONNX Runtime.

    Parameters
    ----------
    model : ModelProto
        A copy that nothing but shape inference reads: averages would differ.
    """
    for node in _all_nodes(model):
        if node.op_type in _POOLS and not node.domain:
            _round_down(node)


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for owner in (model.graph, *model.functions):
        for node in owner.node:
            yield from with_bodies(node)


def _round_down(node: onnx.NodeProto) -> None:
    attributes = {a.name: a for a in node.attribute}
    ceil_mode, kernel = attributes.get("ceil_mode"), attributes.get("kernel_shape")
    if ceil_mode is None or not ceil_mode.i or kernel is None:
        return
    if any(attribute.ref_attr_name for attribute in node.attribute):
        return  # in a function: values are those of each call
    padding = attributes["auto_pad"].s if "auto_pad" in attributes else b"NOTSET"
    if padding.startswith(b"SAME"):
        return  # ceil(size / stride), whatever ceil_mode says
    count = len(kernel.ints)
    values = {
        name: list(attributes[name].ints) if name in attributes else []
        for name in ("strides", "dilations", "pads")
    }
    if padding == b"VALID":
        values["pads"] = []
    strides, dilations = values["strides"] or [1] * count, values["dilations"] or [1] * count
    pads = values["pads"] or [0] * 2 * count
    if not (len(strides) == len(dilations) == count and len(pads) == 2 * count):
        return  # inference reports it
    pads = floor_padding(kernel.ints, strides, dilations, pads)
    kept = [a for a in node.attribute if a.name not in ("ceil_mode", "auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("pads", pads)])
