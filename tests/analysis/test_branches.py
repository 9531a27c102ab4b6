"""Serial regions and regions of independent branches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from builders import branching_model, dense_model, make_model, node, value
from hypothesis import given
from hypothesis import strategies as st

from dask_onnx.analysis.branches import find_regions, free_nodes, with_free_ancestors
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.modelio.onnx_model import load_onnx


def facts_of(model) -> GraphFacts:
    return GraphFacts(load_onnx(model))


def regions(facts, seconds=lambda _: 1.0, *, free_share=0.0, **options):
    cost = {node: seconds(node) for node in facts.live}
    found = find_regions(facts, cost, free_nodes(facts, cost, free_share), **options)
    return [[[facts.nodes[i].name for i in part] for part in region.parts] for region in found]


def test_branches_lie_between_nodes_on_all_paths():
    assert regions(facts_of(branching_model())) == [
        [["stem"]],
        [["left", "left_end"], ["middle"], ["right"]],
        [["join"]],
    ]


def test_a_chain_is_one_serial_region():
    assert regions(facts_of(dense_model())) == [[["first", "bias", "activate", "second"]]]


def test_cheap_shared_nodes_belong_to_no_branch():
    facts = facts_of(branching_model())
    cost = [0.01, 1, 1, 1, 1, 1]
    assert regions(facts, cost.__getitem__, free_share=0.01)[0] == [
        ["left", "left_end"],
        ["middle"],
        ["right"],
    ]
    free = frozenset({0})
    assert with_free_ancestors(facts, [4], free) == [0, 4]


def ladder():
    """Return four branches that meet one after the other: ((a + b) + c) + d."""
    nodes = [node("Relu", "x", "stem", "stem")]
    nodes += [node("Neg", "stem", name, name) for name in "abcd"]
    nodes += [
        node("Add", "a b", "ab", "ab"),
        node("Add", "ab c", "abc", "abc"),
        node("Add", "abc d", "y", "abcd"),
    ]
    return make_model(nodes, [value("x", ["N"])], [value("y", ["N"])])


def test_branches_that_meet_one_by_one_are_found():
    facts = facts_of(ladder())
    assert regions(facts)[1:] == [[["a"], ["b"], ["c"], ["d"]], [["ab", "abc", "abcd"]]]


def test_branches_that_meet_early_may_be_joined():
    cost = {"stem": 1, "a": 1, "b": 1, "c": 3, "d": 3}
    facts = facts_of(ladder())
    found = regions(facts, lambda i: cost.get(facts.nodes[i].name, 0.1), join_share=0.5)
    assert found[1] == [["a", "b", "ab"], ["c"], ["d"]]


def test_independent_components_are_branches_from_the_start():
    nodes = [node("Relu", "x", "a", "a"), node("Neg", "z", "b", "b")]
    inputs = [value("x", ["N"]), value("z", ["N"])]
    facts = facts_of(make_model(nodes, inputs, [value("a", ["N"]), value("b", ["N"])]))
    assert regions(facts) == [[["a"], ["b"]]]


def test_branches_beside_a_skip_connection_are_found():
    # The join reads the stem too: only stem and join lie on every path.
    nodes = [
        node("Relu", "x", "stem", "stem"),
        node("Exp", "stem", "fork", "fork"),
        node("Neg", "fork", "a", "a"),
        node("Abs", "fork", "b", "b"),
        node("Sum", "stem a b", "y", "join"),
    ]
    facts = facts_of(make_model(nodes, [value("x", ["N"])], [value("y", ["N"])]))
    assert regions(facts) == [[["stem", "fork"]], [["a"], ["b"]], [["join"]]]


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([0.0, 0.25, 0.5]),
)
def test_regions_cover_each_node_once_and_read_only_earlier_ones(reads, free_share, join_share):
    nodes = [
        node("Sum", " ".join(f"v{r % (i + 1)}" for r in row), f"v{i + 1}")
        for i, row in enumerate(reads)
    ]
    outputs = [value(f"v{len(reads)}", ["N"])]
    facts = facts_of(make_model(nodes, [value("v0", ["N"])], outputs))
    cost = dict.fromkeys(facts.live, 1.0)
    free = free_nodes(facts, cost, free_share)
    done = set(free)
    for region in find_regions(facts, cost, free, join_share=join_share):
        for part in region.parts:
            for i in part:
                assert set(facts.predecessors[i]) <= done | set(part)
        assert done.isdisjoint(region.nodes)
        done.update(region.nodes)
    assert done == facts.live
    for i in free:
        assert free.issuperset(facts.predecessors[i])


def unet(levels):
    """Return the predecessors of the nodes of an encoder, two branches and a mirrored decoder."""
    encoder = [[i - 1] if i else [] for i in range(levels)]
    bottom = [[levels - 1], [levels - 1], [levels, levels + 1]]
    last = levels + 2
    return [*encoder, *bottom, *([last + i, levels - 1 - i] for i in range(levels))]


def crossed(levels):
    """Return the predecessors of two chains whose nodes read both nodes of the level before."""
    return [[], [], *([i - i % 2 - 2, i - i % 2 - 1] for i in range(2, 2 * levels))]


class CountingList(list):
    """A list that counts lookups."""

    lookups = 0

    def __getitem__(self, index):
        self.lookups += 1
        return super().__getitem__(index)


def facts_from(predecessors):
    successors = CountingList([] for _ in predecessors)
    for index, before in enumerate(predecessors):
        for other in before:
            list.__getitem__(successors, other).append(index)
    return SimpleNamespace(
        nodes=range(len(predecessors)), predecessors=predecessors, successors=successors
    )


def test_branches_below_many_skip_connections_are_found():
    facts = facts_from(unet(1000))
    found = find_regions(facts, dict.fromkeys(facts.nodes, 1.0))
    assert [region.parts for region in found if region.is_parallel] == [((1000,), (1001,))]


@pytest.mark.parametrize("graph", [unet, crossed])
@pytest.mark.parametrize("join_share", [0.0, 0.25])
def test_nested_branches_take_linear_time(graph, join_share):
    def lookups(levels):
        facts = facts_from(graph(levels))
        # Costs decrease, so that the remaining nodes are never joined.
        find_regions(facts, {node: 0.5**node for node in facts.nodes}, join_share=join_share)
        return facts.successors.lookups

    assert lookups(400) < 2.5 * lookups(200)
