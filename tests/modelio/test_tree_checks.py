"""Tree ensembles: branches lead to nodes that exist, and never back."""

from __future__ import annotations

import time

import numpy as np
import pytest
from modelio.damaged_models import model_of, refusal
from onnx import helper, numpy_helper

import dask_onnx as dx


def trees(**changes):
    given = {
        "n_targets": 1,
        "nodes_treeids": [0, 0, 0, 0, 0],
        "nodes_nodeids": [0, 1, 2, 3, 4],
        "nodes_featureids": [0, 1, 0, 0, 0],
        "nodes_values": [0.5, -0.5, 0.0, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LEQ"] * 2 + ["LEAF"] * 3,
        "nodes_truenodeids": [1, 2, 0, 0, 0],
        "nodes_falsenodeids": [4, 3, 0, 0, 0],
        "target_treeids": [0, 0, 0],
        "target_nodeids": [2, 3, 4],
        "target_ids": [0, 0, 0],
        "target_weights": [1.0, 2.0, 3.0],
    }
    ensemble = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], "trees", domain="ai.onnx.ml", **(given | changes)
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return model_of([ensemble], opset_imports=imports)


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes_truenodeids": [1, 0, 0, 0, 0]},
        {"nodes_truenodeids": [1, 1, 0, 0, 0]},
        {"nodes_truenodeids": [0, 2, 0, 0, 0]},
        {"nodes_truenodeids": [1, 9, 0, 0, 0]},
        {"nodes_truenodeids": [1, -1, 0, 0, 0]},
        {"nodes_truenodeids": [1, 2**62, 0, 0, 0]},
        {"nodes_truenodeids": [1, 2]},
        {"nodes_nodeids": [0, 1, 2, 3, 3]},
        {"nodes_nodeids": [0, 1, 2, 3, -4]},
        {"nodes_treeids": [0, 0, 0, 0, 2**62]},
        {"nodes_featureids": [-1, 1, 0, 0, 0]},
        {"target_ids": [0, 0, 1]},
        {"target_ids": [0, 0, -1]},
        {"target_nodeids": [2, 3, 77]},
        {"target_treeids": [0, 0, 5]},
        {"target_treeids": [0]},
    ],
)
def test_trees_lead_to_nodes_that_exist_and_never_back(changes):
    assert refusal(trees(**changes)).node == "trees"


def test_nodes_of_trees_may_be_in_any_order():
    order = [0, 4, 2, 3, 1]
    shuffled = {
        attribute.name: [
            list(attribute.ints or attribute.floats or attribute.strings)[i] for i in order
        ]
        for attribute in trees().graph.node[0].attribute
        if attribute.name.startswith("nodes_")
    }
    assert dx.load(trees(**shuffled)).facts.nodes[0].op_type == "TreeEnsembleRegressor"
    shuffled["nodes_falsenodeids"][order.index(1)] = 0
    assert refusal(trees(**shuffled)).node == "trees"


def test_a_deep_tree_is_checked_in_linear_time():
    count = 60_001  # a chain of branches, from the last node to the first
    is_branch = np.arange(count) >= 2
    below = np.maximum(np.arange(count) - 1, 0) * is_branch
    model = trees(
        nodes_treeids=[0] * count,
        nodes_nodeids=list(range(count)),
        nodes_featureids=[0] * count,
        nodes_values=[0.0] * count,
        nodes_modes=["BRANCH_LEQ" if each else "LEAF" for each in is_branch],
        nodes_truenodeids=below.tolist(),
        nodes_falsenodeids=[0] * count,
        target_treeids=[0],
        target_nodeids=[0],
        target_ids=[0],
        target_weights=[1.0],
    )
    start = time.process_time()
    assert dx.load(model).facts.nodes
    assert time.process_time() - start < 20


def flat_trees(**changes):
    given = {
        "n_targets": 1,
        "nodes_featureids": [0, 1],
        "nodes_splits": numpy_helper.from_array(np.array([0.5, -0.5], np.float32), "s"),
        "nodes_modes": numpy_helper.from_array(np.zeros(2, np.uint8), "m"),
        "nodes_truenodeids": [1, 0],
        "nodes_trueleafs": [0, 1],
        "nodes_falsenodeids": [2, 1],
        "nodes_falseleafs": [1, 1],
        "leaf_targetids": [0, 0, 0],
        "leaf_weights": numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w"),
        "tree_roots": [0],
    }
    ensemble = helper.make_node(
        "TreeEnsemble", ["x"], ["y"], "trees", domain="ai.onnx.ml", **(given | changes)
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 5)]
    return model_of([ensemble], opset_imports=imports)


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes_trueleafs": [0, 0]},
        {"nodes_truenodeids": [0, 0]},
        {"nodes_truenodeids": [2, 0]},
        {"nodes_falsenodeids": [3, 1]},
        {"nodes_falsenodeids": [-1, 1]},
        {"leaf_targetids": [0, 0, 1]},
        {"tree_roots": [2]},
        {"nodes_featureids": [0, -1]},
        {"nodes_featureids": [0]},
    ],
)
def test_flat_trees_lead_to_nodes_that_exist_and_never_back(changes):
    assert refusal(flat_trees(**changes)).node == "trees"


def test_sound_flat_trees_are_loaded():
    assert dx.load(flat_trees()).facts.nodes[0].op_type == "TreeEnsemble"
