"""Nodes of a model that each kernel of ONNX Runtime (ORT) stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx

from dask_onnx.runtime.onnxruntime_internals import KernelCall

_REPLACED = re.compile(r"(_nchwc|_fused|/\w+Fusion/?)+$")
"""Endings of the names of nodes that ORT has put in the place of others."""
_MAX_FUSED = 4
"""Nodes that ORT puts into one, among those that are named after the last."""


class Fusions:
    """The nodes of a stage that each kernel of ORT stands for.

    Parameters
    ----------
    nodes : mapping of int to NodeProto
        Nodes of the stage by their positions.
    """

    def __init__(self, nodes: Mapping[int, onnx.NodeProto]) -> None:
        self.nodes = nodes
        self.made = {name: i for i, node in nodes.items() for name in node.output if name}

    def members(self, call: KernelCall) -> tuple[int, ...]:
        """Return the nodes of a kernel, the one that names it first; none for one that ORT added.

        ORT names a node that it has put in the place of others after the first of them, or after
        the value that the last one makes: a Conv with a Relu after it by the Relu's result.
        """
        index = call.node
        if index is None:
            index = self.made.get(_REPLACED.sub("", call.name))
        if index is None:
            return ()
        if index not in self.nodes:
            return (index,)
        path = [index]
        wanted = call.op_type.removeprefix("Fused")
        for _ in range(_MAX_FUSED):
            if self.nodes[path[-1]].op_type == wanted:
                return tuple(reversed(path))
            before = [self.made[name] for name in self.nodes[path[-1]].input if name in self.made]
            fitting = [i for i in before if self.nodes[i].op_type == wanted]
            if not fitting and len(before) != 1:
                break
            path.append(fitting[0] if fitting else before[0])
        return (index,)
