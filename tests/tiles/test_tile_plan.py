"""Planning of tiles, partial statistics and ramps: pure arithmetic, without Dask or a session."""

from __future__ import annotations

import ast
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from builders import make_model, node, value, weights
from hypothesis import given
from hypothesis import strategies as st

import dask_onnx as dx
from dask_onnx.analysis.axes.dependence import window
from dask_onnx.analysis.cost import CostTable, node_costs
from dask_onnx.tiles import tile_plan as plan_module
from dask_onnx.tiles.budget import automatic_tile, projected_bytes
from dask_onnx.tiles.passes import predicted_seconds, with_passes
from dask_onnx.tiles.places import Layout, Place, Reflection, factors_of, sliding_window
from dask_onnx.tiles.ramps import axis_tiling, covering
from dask_onnx.tiles.ramps import weights as ramp_weights
from dask_onnx.tiles.reduce import KINDS, finish, merge, partial
from dask_onnx.tiles.tile_rules import NodeRules
from dask_onnx.tiles.tiling_analysis import TilingRequest, analyze_tiling

ONE = Fraction(1)


def request_for(nodes, constants, shape, *, axes=(2, 3), outputs=("y",), max_untiled_bytes=2**40):
    proto = make_model(
        nodes,
        [value("x", ["N", shape[1], "H", "W"])],
        [value(name, None) for name in outputs],
        constants,
    )
    facts = dx.load(proto)._facts
    return TilingRequest(facts.graph, {}, {}, "x", shape, axes, outputs, max_untiled_bytes)


def plan_for(nodes, constants, shape, tile, **options):
    request = request_for(nodes, constants, shape, **options)
    analysis = analyze_tiling(request)
    return analysis.plan(dict.fromkeys(request.axes, tile), request.outputs)


def spans(plan, k, group=0, component=0):
    part = plan.groups[group].components[component]
    return [tuple(plan.span(part, k, tile)) for tile in plan.grids[k].tiles]


CONV = [node("Conv", "x w", "y", pads=[1, 1, 1, 1])]
W = {"w": weights(3, 3, 3, 3)}
WIDE = {"w": weights(16, 16, 3, 3)}


def test_the_planning_modules_import_neither_dask_nor_a_session():
    folder = Path(plan_module.__file__).parent
    for name in (
        "tile_plan",
        "flow",
        "trace",
        "input_places",
        "size_values",
        "tile_rules",
        "places",
        "tiling_analysis",
        "passes",
        "graph_rewrites",
        "reduce",
        "ramps",
    ):
        tree = ast.parse((folder / f"{name}.py").read_text())
        names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        roots = {name.partition(".")[0] for name in names}
        assert not roots & {"dask", "distributed", "onnxruntime"}, name
        assert not any("runtime" in name for name in names), name


# Receptive fields.


def test_a_sliding_window_reads_around_each_position():
    receptive_field = sliding_window(window(-1, 1, 3))
    assert receptive_field.needed(4, 8, 100) == (3, 9)
    assert receptive_field.needed(0, 8, 100) == (0, 9)
    assert receptive_field.needed(90, 100, 100) == (89, 100)


def test_a_position_wholly_in_padding_reads_the_nearest_input_position():
    receptive_field = sliding_window(window(-5, 1, 1))
    assert receptive_field.needed(0, 3, 100) == (0, 1)
    assert receptive_field.needed(106, 108, 100) == (99, 100)


def test_a_window_over_blocks_reads_whole_positions():
    receptive_field = sliding_window(window(-1, 1, 3), blocks=2)
    assert receptive_field.needed(4, 8, 50) == (1, 5)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(7, 30), st.data())
def test_reflection_reads_the_positions_that_it_mirrors(begin, end, size, data):
    total = size + begin + end
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start + 1, total))
    shown = np.pad(np.arange(size), (begin, end), mode="reflect")[start:stop]
    low, high = Reflection(begin, end).needed(start, stop, size)
    assert low <= shown.min() and shown.max() < high
    assert 0 <= low < high <= size


# Layouts.


def test_rows_and_columns_that_share_an_axis_are_split():
    places = {2: Place(1, 1, 5, 4, ONE), 3: Place(1, 4, 1, 5, ONE)}
    layout = Layout(factors_of((2, 20, 8), places))
    assert layout.split_shape({2: 4, 3: 5}) == (2, 4, 5, 8)
    assert layout.joined_shape({2: 2, 3: 3}) == (2, 6, 8)
    assert not layout.is_split
    assert (layout.axis_of(2), layout.axis_of(3)) == (1, 2)


def test_locations_that_contradict_the_shape_are_refused():
    with pytest.raises(ValueError, match="not a multiple"):
        factors_of((2, 21), {2: Place(1, 1, 5, 4, ONE)})


# Spans.


def test_a_convolution_borrows_one_pixel_from_each_neighbour():
    plan = plan_for(CONV, W, (1, 3, 32, 40), 8)
    assert spans(plan, 2) == [(0, 9), (7, 17), (15, 25), (23, 32)]


def test_crops_begin_at_multiples_of_the_strides():
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Conv", "a w", "y", pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    plan = plan_for(nodes, W, (1, 3, 50, 64), 16)
    assert plan.grids[2].align == 4
    assert plan.grids[2].borders == (0, 16, 32, 48, 50)
    assert all(start % 4 == 0 and (stop % 4 == 0 or stop == 50) for start, stop in spans(plan, 2))
    assert spans(plan, 2)[1] == (12, 32)


def test_tiles_are_at_least_the_alignment():
    nodes = [node("MaxPool", "x", "y", kernel_shape=[8, 8], strides=[8, 8])]
    assert plan_for(nodes, {}, (1, 3, 64, 64), 3).grids[2].borders == tuple(range(0, 65, 8))


def test_no_output_has_an_empty_tile():
    nodes = [node("Slice", "x start end axis", "y")]
    constants = {"start": np.array([0]), "end": np.array([-9]), "axis": np.array([2])}
    plan = plan_for(nodes, constants, (1, 3, 40, 40), 8)
    assert plan.grids[2].borders == (0, 8, 16, 24, 40)
    assert plan.chunks("y")[2] == (8, 8, 8, 7)


def test_padding_goes_to_the_first_and_last_tile():
    nodes = [node("Pad", "x pads", "y")]
    constants = {"pads": np.array([0, 0, 2, 0, 0, 0, 3, 0])}
    plan = plan_for(nodes, constants, (1, 3, 32, 32), 8)
    assert plan.chunks("y")[2] == (8, 8, 8, 13)


def test_components_of_a_pass_that_share_no_tile_have_their_own_crops():
    nodes = [
        node("GlobalAveragePool", "x", "g"),
        node("Sub", "x g", "c"),
        node("Conv", "c w", "y", pads=[1, 1, 1, 1]),
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "a", "h"),
        node("Sub", "a h", "d"),
        node("Conv", "d w", "z", pads=[3, 3, 3, 3], dilations=[3, 3]),
    ]
    plan = plan_for(nodes, W, (1, 3, 64, 64), 16, outputs=("y", "z"))
    assert plan.groups[1].level == 1
    assert len(plan.groups[1].components) == 2
    assert [spans(plan, 2, 1, i)[1] for i in (0, 1)] == [(15, 33), (13, 35)]


def test_every_statistic_ends_a_pass():
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
        node("InstanceNormalization", "a s b", "c"),
        node("Conv", "c w", "d", pads=[1, 1, 1, 1]),
        node("InstanceNormalization", "d s b", "y"),
    ]
    constants = {**W, "s": weights(3), "b": weights(3)}
    plan = plan_for(nodes, constants, (1, 3, 64, 64), 16)
    assert plan.passes == 3
    # The second pass continues from kept tiles, with the halo of its own convolution only.
    assert [group.wanted for group in plan.groups] == [["a"], ["d"], ["y"]]
    assert spans(plan, 2, 1)[1] == (15, 33)
    assert spans(plan, 2, 2)[1] == (16, 32)


def test_the_graph_is_traced_once_however_many_tiles_there_are(monkeypatch):
    calls = []
    outcomes = NodeRules.outcomes
    monkeypatch.setattr(NodeRules, "outcomes", lambda *a, **k: calls.append(1) or outcomes(*a, **k))
    found = analyze_tiling(request_for(CONV, W, (1, 3, 4096, 4096)))
    before = len(calls)
    plan = found.plan({2: 16, 3: 16}, ("y",))
    part = plan.groups[0].components[0]
    for tile in plan.grids[2].tiles:
        plan.span(part, 2, tile)
    assert len(plan.grids[2].tiles) == 256
    assert len(calls) == before


# Additional passes.


def deep_on_small_maps(depth):
    """Return a large convolution, three strides of two, and a deep stack on small maps."""
    nodes = [node("Conv", "x w", "v0", pads=[1] * 4)]
    strides = [2, 2, 2] + [1] * depth
    for i, stride in enumerate(strides):
        nodes.append(node("Conv", f"v{i} w", f"v{i + 1}", pads=[1] * 4, strides=[stride] * 2))
    nodes.append(node("Identity", f"v{len(strides)}", "y"))
    return nodes


def test_small_maps_get_a_pass_of_their_own_if_that_saves_time():
    plan = plan_for(deep_on_small_maps(12), WIDE, (1, 16, 8192, 8192), 512)
    chosen = with_passes(plan)
    assert (plan.passes, chosen.passes) == (1, 2)
    each = node_costs(plan.flow.facts, plan.flow.specs)
    seconds = [predicted_seconds(p, each, CostTable()) for p in (plan, chosen)]
    assert seconds[1] < 0.8 * seconds[0]
    borrowed = [stop - start - 512 for start, stop in (spans(p, 2)[5] for p in (plan, chosen))]
    assert borrowed[1] < 0.2 * borrowed[0]


def test_no_pass_is_added_if_that_saves_nothing():
    plan = plan_for(deep_on_small_maps(0), WIDE, (1, 16, 8192, 8192), 1024)
    assert with_passes(plan) is plan


# Memory.


def test_the_projection_grows_with_the_tile():
    found = analyze_tiling(request_for(CONV, W, (1, 3, 1024, 1024)))
    small, large = (projected_bytes(found.plan({2: t, 3: t}, ("y",))) for t in (64, 128))
    # An input tile and an output tile, of three float32 channels each.
    assert small == pytest.approx(2 * 3 * 4 * 64**2, rel=0.1)
    assert 3.7 < large / small < 4


def test_an_automatic_tile_is_the_largest_that_fits():
    found = analyze_tiling(request_for(CONV, W, (1, 3, 2048, 2048)))
    limit = 10 * 2**20
    tiles = automatic_tile(found, ("y",), limit, slots=2)
    larger = {k: 2 * size for k, size in tiles.items()}
    assert projected_bytes(found.plan(tiles, ("y",))) <= limit
    assert projected_bytes(found.plan(larger, ("y",))) > limit


def test_an_automatic_tile_keeps_all_workers_busy():
    found = analyze_tiling(request_for(CONV, W, (1, 3, 2048, 2048)))
    tiles = automatic_tile(found, ("y",), 2**40, slots=16)
    assert len(found.plan(tiles, ("y",)).grids[2].tiles) ** 2 >= 16


def test_a_tile_that_cannot_fit_is_refused_with_the_projection():
    nodes = [node("MaxPool", "x", "y", kernel_shape=[8, 8], strides=[8, 8])]
    found = analyze_tiling(request_for(nodes, {}, (1, 3, 2048, 2048)))
    with pytest.raises(dx.InputError) as caught:
        automatic_tile(found, ("y",), 100, slots=1)
    # An input tile of 8 x 8 and one output pixel, of three float32 channels each.
    needed = (64 + 1) * 3 * 4
    assert caught.value.numbers == {"needed_bytes": needed, "limit_bytes": 100}
    assert caught.value.suggestions == (dx.Suggestion("memory_limit", needed),)


# Statistics.


@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(2, 12),
    st.integers(2, 12),
    st.integers(0, 2**31),
    st.data(),
)
def test_partial_statistics_combine_to_that_of_all_pixels(kind, height, width, seed, data):
    array = np.random.default_rng(seed).uniform(0.5, 2, (2, height, width)).astype(np.float32)
    rows = data.draw(st.integers(1, height - 1))
    columns = data.draw(st.integers(1, width - 1))
    tiles = [
        array[:, r, c]
        for r in (slice(0, rows), slice(rows, None))
        for c in (slice(0, columns), slice(columns, None))
    ]
    whole = finish(kind, partial(kind, array, (1, 2)), np.dtype(np.float32))
    joined = merge(kind, [partial(kind, tile, (1, 2)) for tile in tiles])
    np.testing.assert_allclose(finish(kind, joined, np.dtype(np.float32)), whole, rtol=1e-5)
    wide = array.astype(np.float64)
    expected = {
        "mean": wide.mean, "variance": wide.var, "sum": wide.sum, "max": wide.max,
        "min": wide.min, "product": wide.prod, "l1": np.abs(wide).sum,
        "l2": lambda **k: np.sqrt((wide**2).sum(**k)),
        "sum_of_squares": (wide**2).sum,
        "log_sum": lambda **k: np.log(wide.sum(**k)),
        "logsumexp": lambda **k: np.log(np.exp(wide).sum(**k)),
    }[kind]  # fmt: skip
    np.testing.assert_allclose(whole, expected(axis=(1, 2), keepdims=True), rtol=1e-5)


def test_a_variance_of_values_far_from_zero_is_accurate():
    array = (np.random.default_rng(0).standard_normal((1, 64, 64)) + 1e4).astype(np.float32)
    parts = [partial("variance", array[:, i : i + 8], (1, 2)) for i in range(0, 64, 8)]
    found = finish("variance", merge("variance", parts), np.dtype(np.float64))
    np.testing.assert_allclose(found.item(), array.astype(np.float64).var(), rtol=1e-6)


def test_float16_is_summed_in_a_wider_dtype():
    array = np.full((1, 300, 300), 2, np.float16)
    for kind in ("mean", "variance", "l2"):
        found = finish(kind, partial(kind, array, (1, 2)), np.dtype(np.float32))
        assert found.item() == pytest.approx({"mean": 2, "variance": 0, "l2": 600}[kind])


def test_sums_of_integers_are_exact():
    array = np.full((1, 3, 3), 2**30 + 1, np.int64)
    found = finish("sum", partial("sum", array, (1, 2)), np.dtype(np.int64))
    assert found.item() == 9 * (2**30 + 1)


def test_a_tile_without_finite_values_leaves_a_logsumexp_finite():
    low, some = np.full((1, 2, 2), -np.inf, np.float32), np.zeros((1, 2, 2), np.float32)
    joined = merge(
        "logsumexp", [partial("logsumexp", low, (1, 2)), partial("logsumexp", some, (1, 2))]
    )
    assert finish("logsumexp", joined, np.dtype(np.float32)).item() == pytest.approx(np.log(4))


# Ramps.


@given(
    st.integers(1, 400), st.integers(8, 64), st.integers(0, 32), st.sampled_from([1, 2, 4]),
    st.sampled_from([Fraction(1), Fraction(1, 2), Fraction(1, 4), Fraction(2)]),
)  # fmt: skip
def test_overlapping_tiles_cover_an_axis_with_weights_that_add_up_to_one(
    size, length, overlap, align, ratio
):
    align = max(align, ratio.denominator)
    length = length // align * align or align
    size = max(size // align, 1) * align
    tiling = axis_tiling(size, length, min(overlap, length // 2), align)
    assert tiling.starts[0] == 0
    assert tiling.tile(len(tiling.starts) - 1)[1] == size
    positions = int(size * ratio)
    each = ramp_weights(tiling, ratio, positions)
    total = np.zeros(positions)
    for _, _, place, ramp in covering(each, 0, positions):
        total[place] += ramp
    np.testing.assert_allclose(total, 1)
    for before, after in zip(tiling.starts, tiling.starts[1:], strict=False):
        assert before < after <= before + length - min(overlap, length // 2, length - align)
