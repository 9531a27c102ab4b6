"""Edges, orders and paths of a graph."""

from __future__ import annotations

from builders import branching_model, captured_model, dense_model, make_model, node, value
from hypothesis import given
from hypothesis import strategies as st

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.modelio.onnx_model import load_onnx


def facts_of(model) -> GraphFacts:
    return GraphFacts(load_onnx(model))


def names(facts, indices):
    return [facts.nodes[i].name for i in indices]


def test_each_edge_is_listed_once():
    facts = facts_of(branching_model())
    assert names(facts, facts.successors[0]) == ["left", "middle", "right"]
    assert sorted(names(facts, facts.predecessors[5])) == ["left_end", "middle", "right"]


def test_captures_of_bodies_are_edges():
    facts = facts_of(captured_model())
    assert set(facts.nodes[1].captures) == {"h", "W", "flag"}
    assert facts.predecessors[1] == [0]


def test_ancestors_leave_out_unneeded_nodes():
    facts = facts_of(branching_model())
    assert names(facts, facts.ancestors(["m"])) == ["stem", "middle"]


def test_dead_nodes_are_not_live():
    nodes = [node("Relu", "x", "y"), node("Neg", "x", "unused")]
    facts = facts_of(make_model(nodes, [value("x", [1])], [value("y", [1])]))
    assert facts.live == {0}


def test_branches_are_counted_as_chains():
    assert facts_of(branching_model()).parallel_branches == 3
    assert facts_of(dense_model()).parallel_branches == 1


def test_the_longest_path_goes_through_the_longest_branch():
    facts = facts_of(branching_model())
    assert names(facts, facts.longest_path()) == ["stem", "left", "left_end", "join"]
    heavy = [100.0 if n.name == "right" else 1.0 for n in facts.nodes]
    assert names(facts, facts.longest_path(heavy)) == ["stem", "right", "join"]


def test_a_branch_is_finished_before_the_next_begins():
    facts = facts_of(branching_model())
    order = names(facts, facts.depth_first_order(range(len(facts.nodes))))
    assert order == ["stem", "left", "left_end", "middle", "right", "join"]


def test_nodes_where_branches_meet_come_after_other_branches():
    nodes = [
        node("Relu", "x", "stem", "stem"),
        node("Neg", "stem", "a", "a"),
        node("Abs", "stem", "b", "b"),
        node("Add", "a b", "ab", "meet_ab"),
        node("Exp", "stem", "c", "c"),
        node("Add", "ab c", "y", "meet_all"),
    ]
    facts = facts_of(make_model(nodes, [value("x", ["N"])], [value("y", ["N"])]))
    order = names(facts, facts.depth_first_order(range(6)))
    assert order == ["stem", "a", "b", "c", "meet_ab", "meet_all"]


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), min_size=1, max_size=30))
def test_depth_first_order_is_topological_and_complete(reads):
    nodes = [
        node("Sum", " ".join(f"v{r % (i + 1)}" for r in row), f"v{i + 1}")
        for i, row in enumerate(reads)
    ]
    outputs = [value(f"v{len(reads)}", ["N"])]
    facts = facts_of(make_model(nodes, [value("v0", ["N"])], outputs))
    order = facts.depth_first_order(range(len(nodes)))
    assert sorted(order) == list(range(len(nodes)))
    place = {index: position for position, index in enumerate(order)}
    assert all(place[b] < place[i] for i in order for b in facts.predecessors[i])
