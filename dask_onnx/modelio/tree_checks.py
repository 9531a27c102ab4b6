"""Checks of tree ensembles: branches lead to nodes that exist, and never back.

ONNX Runtime follows branches without a check: a circle is an endless loop, and a number of a target
that does not exist writes outside its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from dask_onnx.core.errors import ModelError

_Ints = npt.NDArray[np.int64]

_ENSEMBLES = ("TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble")
_MAX_ID = 2**31 - 1
_BRANCHES = ("nodes_truenodeids", "nodes_falsenodeids")
_ADVICE = "convert the model again: its trees are damaged"


def check_trees(node: onnx.NodeProto, name: str) -> None:
    """Check the trees of a tree ensemble; do nothing for other nodes.

    Parameters
    ----------
    node : NodeProto
        Its attributes have the types of its operator's schema.
    name : str
        Name of the node for errors.

    Raises
    ------
    ModelError
        Attributes have different lengths, a branch leads to a node that does not exist or back to
        one before it, or a target, class or feature has a number that is impossible.
    """
    if node.domain != "ai.onnx.ml" or node.op_type not in _ENSEMBLES:
        return
    given = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "TreeEnsemble":
        _check_flat(given, name)
    else:
        _check_keyed(given, name, is_classifier=node.op_type == "TreeEnsembleClassifier")


def _check_keyed(
    given: Mapping[str, onnx.AttributeProto], name: str, *, is_classifier: bool
) -> None:
    """Check trees whose nodes are named by numbers of tree and node."""
    trees, nodes = _numbers(given, "nodes_treeids"), _numbers(given, "nodes_nodeids")
    modes = list(given["nodes_modes"].strings) if "nodes_modes" in given else []
    columns: dict[str, Any] = {"nodes_treeids": trees, "nodes_nodeids": nodes, "nodes_modes": modes}
    columns |= {each: _numbers(given, each) for each in (*_BRANCHES, "nodes_featureids")}
    _check_lengths(columns, name)
    _check_range(name, "nodes_treeids", trees, _MAX_ID)
    _check_range(name, "nodes_nodeids", nodes, _MAX_ID)
    is_branch = np.fromiter((mode != b"LEAF" for mode in modes), bool, len(modes))
    _check_range(name, "nodes_featureids", columns["nodes_featureids"][is_branch], _MAX_ID)
    keys = _keys(trees, nodes)
    order = None if np.all(keys[1:] > keys[:-1]) else np.argsort(keys, kind="stable")
    ordered = keys if order is None else keys[order]
    if np.any(ordered[1:] == ordered[:-1]):
        at = int(np.flatnonzero(ordered[1:] == ordered[:-1])[0])
        raise _fault(name, f"defines node {ordered[at] & _MAX_ID} of a tree twice")
    parents = np.flatnonzero(is_branch)
    children = []
    for branch in _BRANCHES:
        ids = columns[branch][is_branch]
        _check_range(name, branch, ids, _MAX_ID)
        places = _find(ordered, _keys(trees[is_branch], ids), name, branch)
        children.append(places if order is None else order[places])
    _check_acyclic(len(keys), np.tile(parents, 2), np.concatenate(children), name)
    prefix = "class" if is_classifier else "target"
    _check_leaves(given, name, prefix, ordered)


def _check_leaves(
    given: Mapping[str, onnx.AttributeProto], name: str, prefix: str, keys: _Ints
) -> None:
    columns = {
        f"{prefix}_{part}": _numbers(given, f"{prefix}_{part}")
        for part in ("treeids", "nodeids", "ids")
    }
    _check_lengths(columns, name)
    trees, nodes, targets = columns.values()
    for attribute, values in columns.items():
        _check_range(name, attribute, values, _MAX_ID)
    _find(keys, _keys(trees, nodes), name, f"{prefix}_nodeids")
    if prefix == "target":
        count = given["n_targets"].i if "n_targets" in given else None
    else:
        count = max(
            (len(getattr(given[each], field)) for each, field in _LABELS if each in given),
            default=None,
        )
    if count is not None:
        _check_range(name, f"{prefix}_ids", targets, count - 1)


_LABELS = (
    ("classlabels_strings", "strings"),
    ("classlabels_int64s", "ints"),
    ("classlabels_int64", "ints"),
)
"""Attributes with the labels of a classifier, and their fields."""


def _check_flat(given: Mapping[str, onnx.AttributeProto], name: str) -> None:
    """Check trees whose nodes are named by their position, as in version 5 of ai.onnx.ml."""
    features = _numbers(given, "nodes_featureids")
    leaf_targets = _numbers(given, "leaf_targetids")
    columns = {each: _numbers(given, each) for each in (*_BRANCHES, *_IS_LEAF)}
    modes = _tensor(given, "nodes_modes")
    _check_lengths({"nodes_featureids": features, "nodes_modes": modes, **columns}, name)
    _check_range(name, "nodes_featureids", features, _MAX_ID)
    parents, children = [], []
    for branch, leaf in zip(_BRANCHES, _IS_LEAF, strict=True):
        is_leaf = columns[leaf] != 0
        _check_range(name, branch, columns[branch][is_leaf], len(leaf_targets) - 1)
        _check_range(name, branch, columns[branch][~is_leaf], len(features) - 1)
        parents.append(np.flatnonzero(~is_leaf))
        children.append(columns[branch][~is_leaf])
    _check_range(name, "tree_roots", _numbers(given, "tree_roots"), len(features) - 1)
    targets = given["n_targets"].i if "n_targets" in given else None
    if targets is not None:
        _check_range(name, "leaf_targetids", leaf_targets, targets - 1)
    _check_acyclic(len(features), np.concatenate(parents), np.concatenate(children), name)


_IS_LEAF = ("nodes_trueleafs", "nodes_falseleafs")


def _numbers(given: Mapping[str, onnx.AttributeProto], attribute: str) -> _Ints:
    values = given[attribute].ints if attribute in given else ()
    return np.fromiter(values, np.int64, len(values))


def _tensor(given: Mapping[str, onnx.AttributeProto], attribute: str) -> npt.NDArray[Any]:
    return numpy_helper.to_array(given[attribute].t) if attribute in given else np.empty(0)


def _keys(trees: _Ints, nodes: _Ints) -> _Ints:
    """Return one number for each pair of tree and node, both at most `_MAX_ID`."""
    return trees << np.int64(32) | nodes


def _find(ordered: _Ints, keys: _Ints, name: str, attribute: str) -> npt.NDArray[np.intp]:
    """Return the positions of keys in ascending ones."""
    places = np.searchsorted(ordered, keys)
    found = places < len(ordered)
    found[found] = ordered[places[found]] == keys[found]
    if not found.all():
        key = int(keys[np.flatnonzero(~found)[0]])
        raise _fault(
            name,
            f"refers in {attribute} to node {key & _MAX_ID} of tree {key >> 32}, "
            "which does not exist",
        )
    return places


def _check_lengths(columns: Mapping[str, Any], name: str) -> None:
    lengths = {attribute: len(values) for attribute, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{attribute} {length:,}" for attribute, length in lengths.items())
        raise _fault(name, f"has attributes of different lengths: {shown}", **lengths)


def _check_range(name: str, attribute: str, values: _Ints, most: int) -> None:
    if not values.size or (values.min() >= 0 and values.max() <= most):
        return
    wrong = int(values[(values < 0) | (values > most)][0])
    raise _fault(
        name, f"has {wrong} in {attribute}, which goes from 0 to {most}", value=wrong, most=most
    )


def _check_acyclic(count: int, parents: _Ints, children: _Ints, name: str) -> None:
    """Check that branches never lead back: every node is removed after all nodes below it."""
    if np.all(children > parents):
        return  # the usual order, in which nodes follow those above them
    order = np.argsort(children, kind="stable")
    above, starts = parents[order], np.searchsorted(children[order], np.arange(count + 1))
    waiting = np.bincount(parents, minlength=count)
    ready = np.flatnonzero(waiting == 0)
    removed = 0
    while ready.size:
        removed += len(ready)
        sizes = starts[ready + 1] - starts[ready]
        offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        before = above[np.repeat(starts[ready], sizes) + offsets]
        np.subtract.at(waiting, before, 1)
        candidates = np.unique(before)
        ready = candidates[waiting[candidates] == 0]
    if removed < count:
        raise _fault(
            name,
            f"has trees whose branches lead back: {count - removed:,} nodes form circles, or lead "
            "into one",
            nodes=count - removed,
        )


def _fault(name: str, fault: str, **numbers: float) -> ModelError:
    return ModelError(f"node {name!r} {fault}", _ADVICE, node=name, numbers=numbers)
