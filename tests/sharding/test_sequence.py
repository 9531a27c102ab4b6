"""Plans that are sharded along a sequence give what ONNX Runtime gives for the whole."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import onnx
import onnxruntime
import pytest
import sequence_models as models
from builders import make_model, node, run_onnx, value, weights
from dask.delayed import Delayed
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.analysis.cost import CostTable
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.planning.resources import PROCESS_BYTES, Cluster
from dask_onnx.sharding import auto_sharding
from dask_onnx.sharding.strategy import Sharded
from dask_onnx.store.weight_store import Store

TOKENS = 25
RNG = np.random.default_rng(0)
POOL = {
    "x": RNG.standard_normal((2, TOKENS, models.WIDTH)).astype(np.float32),
    "m": (np.arange(TOKENS) < np.array([[TOKENS], [10]])).astype(np.int32),
    "b": RNG.standard_normal((1, 1, TOKENS, TOKENS)).astype(np.float32),
    "c": RNG.standard_normal((TOKENS, TOKENS)).astype(np.float32),
}


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


def feeds_of(model):
    return {spec.name: POOL[spec.name] for spec in model.inputs}


def sharded(proto, n=3, axis="sequence", key_blocks=None, outputs=None):
    """The plan of a model for the shapes of `POOL`, and what it gives."""
    model = dx.load(proto)
    feeds = feeds_of(model)
    shapes = {name: array.shape for name, array in feeds.items()}
    plan = model.plan(Sharded(axis, n, key_blocks), shapes=shapes)
    return plan, model.predict(feeds, plan=plan, outputs=outputs)


def assert_equal(result, proto, feeds=None):
    feeds = feeds or feeds_of(dx.load(proto))
    (expected,) = run_onnx(proto, feeds)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def nodes_on_shards(plan):
    """Names of the nodes that run on shards."""
    made = plan.at()
    nodes = made.segments.candidates.facts.nodes
    segments = [segment for segment in made.segments.segments if segment.is_sharded]
    return {nodes[instance.node].name for segment in segments for instance in segment.instances}


def nodes_run_whole(plan):
    """Names of the nodes that run whole."""
    made = plan.at()
    nodes = made.segments.candidates.facts.nodes
    segments = [segment for segment in made.segments.segments if not segment.is_sharded]
    return {nodes[instance.node].name for segment in segments for instance in segment.instances}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
def test_an_encoder_in_query_blocks_equals_the_whole(n):
    proto = models.encoder()
    plan, result = sharded(proto, n)
    assert_equal(result, proto)
    if n > 1:
        # Keys and values of each layer are all that is gathered.
        assert sorted(plan.at().segments.gathers) == ["aturned", "avt", "bturned", "bvt"]
        assert nodes_run_whole(plan) == set()


@given(tokens=st.integers(1, 40), n=st.integers(1, 7), rows=st.integers(1, 3))
@settings(max_examples=15)
def test_any_length_in_any_number_of_shards_equals_the_whole(tokens, n, rows):
    proto = models.encoder()
    x = np.random.default_rng(tokens).standard_normal((rows, tokens, models.WIDTH))
    x = x.astype(np.float32)
    model = dx.load(proto)
    result = model.predict(x, plan=model.plan(Sharded({"x": 1}, n)))
    assert_equal(result, proto, {"x": x})


@pytest.mark.parametrize("build", [models.decoder_by_range, models.decoder_by_triangle])
def test_causal_masks_are_computed_on_each_shard(build):
    proto = build()
    plan, result = sharded(proto)
    assert_equal(result, proto)
    bounds = plan.at().bounds
    square = {"allowed", "bias", "mask", "full", "triangle"}
    assert nodes_run_whole(plan).isdisjoint(square), bounds


def test_a_mask_between_tokens_is_sharded_with_them_before_sizes_are_known():
    nodes, made = models.projections("x")
    nodes.append(
        node("Attention", "q k v m", "y", "attend", q_num_heads=4, kv_num_heads=4),
    )
    proto = make_model(
        nodes,
        [value("x", ["N", "T", models.WIDTH]), value("m", ["T", "T"], TensorProto.BOOL)],
        [value("y", None)],
        made,
        opset=23,
        ir_version=10,
    )
    feeds = {"x": weights(2, 7, models.WIDTH), "m": np.tril(np.ones((7, 7), bool))}
    model = dx.load(proto)
    plan = model.plan(Sharded("sequence", 2))
    (expected,) = run_onnx(proto, feeds)
    np.testing.assert_allclose(model.predict(feeds, plan=plan), expected, atol=1e-5)


def test_rotary_positions_are_those_of_the_whole():
    proto = models.rotary_encoder()
    plan, result = sharded(proto)
    assert_equal(result, proto)
    assert nodes_run_whole(plan) == {"positions"}


@pytest.mark.parametrize(
    "proto",
    [
        models.fused(),
        models.fused("q k v - m", [models.padding_mask()]),
        models.fused("q k v - - b", [value("b", [1, 1, "T", "T"])]),
        models.fused(unidirectional=1),
        models.fused("q k v - m", [models.padding_mask()], unidirectional=1),
        models.standard(),
        models.standard("q k v c", [value("c", ["T", "T"])]),
        models.standard(is_causal=1),
    ],
    ids=["plain", "padding", "bias", "causal", "causal and padding", "onnx", "mask", "onnx causal"],
)
def test_fused_attention_takes_queries_in_shards(proto):
    plan, result = sharded(proto)
    assert_equal(result, proto)
    assert "attention" in nodes_on_shards(plan)
    assert plan.at().segments.gathers == ("k", "v")


PAST = [value(each, ["N", models.HEADS, "P", models.SIZE]) for each in ("pastk", "pastv")]


@pytest.mark.parametrize(
    "proto",
    [
        models.fused("q k v - - - pastk pastv", PAST),
        models.fused("q k v - - - pastk pastv", PAST, unidirectional=1),
        models.standard("q k v - pastk pastv", PAST),
        models.standard("q k v - pastk pastv", PAST, is_causal=1),
    ],
    ids=["plain", "causal", "onnx", "onnx causal"],
)
def test_fused_attention_with_cached_keys_takes_queries_in_shards(proto, monkeypatch):
    for name in ("pastk", "pastv"):
        shape = (2, models.HEADS, 6, models.SIZE)
        monkeypatch.setitem(POOL, name, RNG.standard_normal(shape).astype(np.float32))
    proto.graph.node[-1].output.extend(["pk", "pv"])  # without them both kernels fail
    plan, result = sharded(proto, axis={"x": 1})
    assert_equal(result, proto)
    assert "attention" in nodes_on_shards(plan)


def test_a_convolution_along_the_sequence_runs_whole():
    behind = [
        node("Transpose", "a", "at", perm=[0, 2, 1]),
        node("Conv", "at wc", "c", "conv", pads=[1, 1], kernel_shape=[3]),
        node("Transpose", "c", "ct", perm=[0, 2, 1]),
        node("MatMul", "ct wq", "y", "last"),
    ]
    made = {"wc": weights(models.WIDTH, models.WIDTH, 3) / 10}
    proto = models.fused(behind=behind, made=made)
    plan, result = sharded(proto)
    assert_equal(result, proto)
    assert "conv" in nodes_run_whole(plan)
    assert "window" in plan.explain()


@pytest.mark.parametrize(
    "pool",
    [
        node("ReduceMean", "a", "p", "pool", axes=[1], keepdims=0),
        node("ReduceMax", "a", "p", "pool", axes=[1], keepdims=0),
        node("Gather", "a zero", "p", "pool", axis=1),
        node("Gather", "a minus", "p", "pool", axis=1),
    ],
    ids=["mean", "max", "first", "last"],
)
def test_pooling_over_the_tokens_equals_the_whole(pool):
    made = {"zero": np.array(0), "minus": np.array(-1)}
    made = {name: array for name, array in made.items() if name in pool.input}
    behind = [pool, node("MatMul", "p wq", "y", "last")]
    proto = models.fused(behind=behind, made=made, output=("N", models.WIDTH))
    plan, result = sharded(proto)
    assert_equal(result, proto)
    assert plan.at().segments.outputs == (("y", None),)


def test_rows_and_tokens_may_be_merged_into_one_axis():
    behind = [
        node("Reshape", "a flat", "rows", "flatten"),
        node("Gemm", "rows wq", "g", "gemm"),
        node("Shape", "a", "shape"),
        node("Reshape", "g shape", "y", "back"),
    ]
    proto = models.fused(behind=behind, made={"flat": np.array([-1, models.WIDTH])})
    plan, result = sharded(proto)
    assert_equal(result, proto)
    assert {"flatten", "gemm", "back"} <= nodes_on_shards(plan)


def test_a_quantisation_statistic_is_taken_over_all_tokens():
    behind = [
        node("DynamicQuantizeLinear", "a", "aq as az", "quantize"),
        node("MatMulInteger", "aq wi az", "mi", "product"),
        node("Cast", "mi", "mf", "cast", to=1),
        node("Mul", "mf as", "ms", "scale"),
        node("Add", "ms x", "y", "residual"),
    ]
    made = {"wi": (weights(models.WIDTH, models.WIDTH) * 20).astype(np.int8)}
    proto = models.fused(behind=behind, made=made)
    plan, result = sharded(proto)
    assert_equal(result, proto)
    assert nodes_run_whole(plan) == {"quantize"}


def test_a_table_of_positions_as_long_as_the_sequence_is_sliced():
    before = [node("Add", "x table", "h", "embed")]
    nodes, made = models.projections("h")
    attention = node(
        "MultiHeadAttention", "q k v", "y", num_heads=models.HEADS, domain="com.microsoft"
    )
    made["table"] = weights(1, TOKENS, models.WIDTH)
    proto = models.sequence_model([*before, *nodes, attention], made, domains=models.MICROSOFT)
    plan, result = sharded(proto)
    assert_equal(result, proto)
    assert "embed" in nodes_on_shards(plan)


def test_a_constant_length_in_the_graph_becomes_that_of_the_shard():
    nodes, made = models.projections("x")
    split = np.array([2, TOKENS, models.HEADS, models.SIZE])
    nodes += [
        node("Reshape", "q split", "qs"),
        node("Reshape", "qs joined", "qj"),
        node("MultiHeadAttention", "qj k v", "y", num_heads=4, domain="com.microsoft"),
    ]
    made |= {"split": split, "joined": np.array([2, TOKENS, models.WIDTH])}
    x = value("x", [2, TOKENS, models.WIDTH])
    y = value("y", [2, TOKENS, models.WIDTH])
    proto = make_model(nodes, [x], [y], made, domains=models.MICROSOFT)
    _, result = sharded(proto)
    assert_equal(result, proto)


def test_a_recurrence_along_the_axis_is_refused_with_its_reason():
    nodes = [
        node("Transpose", "x", "xt", perm=[1, 0, 2]),
        node("LSTM", "xt W R", "y", "lstm", hidden_size=8),
    ]
    made = {"W": weights(1, 32, models.WIDTH), "R": weights(1, 32, 8)}
    proto = models.sequence_model(nodes, made, output=("T", 1, "N", 8))
    with pytest.raises(dx.PlanError) as caught:
        sharded(proto, axis={"x": 1})
    assert caught.value.option == "axis" and caught.value.next_step
    for word in ("'lstm' (LSTM)", "'xt'", "scanned"):
        assert word in caught.value.reason


@pytest.mark.parametrize(
    "arguments",
    [
        {"axis": "tokens", "n": 2},
        {"axis": "sequence", "n": 0},
        {"axis": "sequence", "n": 2.5},
        {"axis": {}, "n": 2},
        {"axis": {"x": "T"}, "n": 2},
        {"axis": {"x": -1}, "n": 2},
        {"axis": "heads", "n": 2, "key_blocks": 2},
        {"axis": "sequence", "n": 2, "key_blocks": 0},
    ],
)
def test_invalid_parameters_of_the_strategy_are_refused(arguments):
    with pytest.raises(dx.PlanError) as caught:
        Sharded(**arguments)
    assert caught.value.option in arguments


def test_axes_that_the_model_does_not_have_are_refused():
    model = dx.load(models.encoder())
    for axis in ({"z": 1}, {"x": 3}):
        with pytest.raises(dx.PlanError):
            model.plan(Sharded(axis, 2))
    with pytest.raises(dx.PlanError):
        model.plan(Sharded("sequence", 2), n_stages=2)


def test_building_runs_nothing_and_arrays_keep_the_shards_as_chunks():
    model = dx.load(models.encoder())
    plan = model.plan(Sharded("sequence", 3))

    def raises(*args, **kwargs):
        raise AssertionError("computed while building")

    with dask.config.set(scheduler=raises):
        lazy = model.predict(da.from_array(POOL["x"], chunks=(2, 10, -1)), plan=plan)
        plan.explain()
    assert lazy.chunks == ((2,), (9, 8, 8), (models.WIDTH,))
    assert lazy.dtype == np.float32
    assert_equal(lazy.compute(), models.encoder())


def test_a_delayed_is_sharded_for_the_shape_that_was_planned():
    model = dx.load(models.encoder())
    plan = model.plan(Sharded("sequence", 3), shapes={"x": POOL["x"].shape})
    lazy = model.delayed(POOL["x"], plan=plan)
    assert isinstance(lazy, Delayed)
    assert_equal(lazy.compute(), models.encoder())
    with pytest.raises(dx.InputError):
        model.delayed(POOL["x"][:, :7], plan=plan).compute()
    with pytest.raises(dx.InputError):
        model.delayed(POOL["x"], plan=model.plan(Sharded("sequence", 3)))


def test_a_delayed_is_converted_as_an_array_is():
    model = dx.load(models.encoder())
    plan = model.plan(Sharded("sequence", 3), shapes={"x": POOL["x"].shape})
    x = np.ma.masked_array(POOL["x"].astype(np.float64), mask=False)
    x.mask[0, 3, 2] = True
    x.data[x.mask] = -9999
    expected = model.predict(x.filled(np.nan))
    for source in (x, dask.delayed(x)):
        (found,) = dask.compute(model.predict(source, plan=plan))
        assert np.isnan(found).any() and np.isfinite(found).any()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(dx.InputError) as raised:
        model.predict(dask.delayed(POOL["x"].astype(complex)), plan=plan).compute()
    assert raised.value.input == "x"


def test_inputs_that_a_sharded_plan_cannot_take_are_refused():
    model = dx.load(models.encoder())
    plan = model.plan(Sharded("sequence", 3))
    with pytest.raises(dx.InputError):
        model.predict(da.from_array(POOL["x"], chunks=(1, -1, -1)), plan=plan)
    with pytest.raises(dx.InputError):
        model.predict(POOL["x"], plan=plan, batch_size=1)
    with pytest.raises(dx.PlanError):
        dx.load(models.rotary_encoder()).predict(POOL["x"], plan=plan)


def test_intermediate_values_may_be_asked_for():
    proto = models.encoder()
    model = dx.load(proto)
    plan = model.plan(Sharded("sequence", 3))
    found = model.predict(POOL["x"], plan=plan, outputs=["ay", "bscores"])
    expected = model(POOL["x"], outputs=["ay", "bscores"])
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


def test_summary_has_gathered_bytes_and_memory_of_a_task():
    model = dx.load(models.encoder())
    shapes = {"x": (1, 4096, models.WIDTH)}
    made = model.plan(Sharded("sequence", 8), shapes=shapes).at()
    size = 4096 * models.WIDTH * 4
    assert made.summary.gathered_bytes == 4 * size
    assert made.summary.memory.task_bytes * 6 < made.summary.whole_bytes
    assert made.summary.tasks == 3 * 8
    assert made.summary.seconds < made.summary.whole_seconds


@pytest.mark.real
@pytest.mark.parametrize(("tokens", "n"), [(24, 2), (37, 3), (64, 5)])
def test_minilm_in_query_blocks_equals_the_whole(asset, tokens, n):
    path = asset("minilm.onnx")
    model = dx.load(path)
    ids = np.random.default_rng(tokens).integers(1000, 20000, (2, tokens))
    mask = (np.arange(tokens) < np.array([[tokens], [tokens // 2]])).astype(np.int64)
    pool = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    feeds = {spec.name: pool[spec.name] for spec in model.inputs}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, feeds)
    plan = model.plan(Sharded("sequence", n))
    result = model.predict(feeds, plan=plan)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-5)
    # Weights that are dequantised are so in each segment, not sent from one.
    assert sum(name.startswith("node_Dequantize") for name in nodes_run_whole(plan)) == 0


def test_outputs_without_shards_are_returned():
    proto = models.encoder()
    proto.graph.node.append(node("Shape", "x", "sizes"))
    proto.graph.node.append(node("Neg", "root", "turned"))
    proto.graph.output.append(value("sizes", [3], TensorProto.INT64))
    proto.graph.output.append(value("turned", []))
    proto.graph.output.append(value("root", []))
    model = dx.load(proto)
    found = model.predict(POOL["x"], plan=model.plan(Sharded("sequence", 3)))
    for name, array in model(POOL["x"]).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


@pytest.mark.real
def test_building_reads_no_weights(asset, monkeypatch):
    model = dx.load(asset("minilm.onnx"))

    def raises(*args):
        raise AssertionError("weights were read")

    monkeypatch.setattr(OnnxModel, "blob_bytes", raises)
    plan = model.plan(Sharded("sequence", 3))
    ids = da.ones((1, 48), dtype=np.int64, chunks=16)
    lazy = model.predict({spec.name: ids for spec in model.inputs}, plan=plan)
    assert lazy.chunks[1] == (16, 16, 16)


@pytest.fixture
def blind_client(tmp_path):
    """Two workers with a store of their own, as on two hosts."""
    workers = {
        name: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "config": {"onnx.store.directory": str(tmp_path / name)},
            },
        }
        for name in "ab"
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with (
        SpecCluster(workers=workers, scheduler=scheduler) as cluster,
        Client(cluster) as client,
        dask.config.set(scheduler=None),
    ):
        client.wait_for_workers(2)
        yield client


@pytest.mark.cluster
def test_weights_reach_workers_with_another_store(blind_client, tmp_path):
    proto = models.encoder()
    assert_equal(dx.load(proto).predict(POOL["x"], plan=_plan(dx.load(proto))), proto)
    path = tmp_path / "encoder.onnx"
    onnx.save(models.decoder_by_range(), path)
    model = dx.load(path)
    result = model.predict(POOL["x"], plan=_plan(model))
    assert_equal(result, models.decoder_by_range())


def _plan(model):
    return model.plan(Sharded("sequence", 4))


@pytest.mark.cluster
def test_shards_run_in_processes_of_a_cluster(store_directory):
    proto = models.decoder_by_triangle()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        dask.config.set(scheduler=None),
    ):
        dx.configure(client)
        model = dx.load(proto)
        plan = model.plan(Sharded("sequence", 4))
        assert_equal(model.predict(POOL["x"], plan=plan), proto)
        lazy = model.predict(da.from_array(POOL["x"], chunks=-1), plan=plan)
        assert_equal(lazy.compute(), proto)


def test_auto_weighs_sequence_shards_for_one_request(monkeypatch):
    two_workers = Cluster(workers=2, threads=1, memory_limit=4e9)
    monkeypatch.setattr(auto_sharding, "cluster_facts", lambda client: two_workers)
    model = dx.load(models.encoder())
    one = model.plan("auto", batches=1)
    assert isinstance(one, dx.Plan)
    assert "sequence by 2" in [found.name for found in one.verdict.alternatives]
    many = model.plan("auto", batches=16)
    assert "sequence by 2" not in [found.name for found in many.verdict.alternatives]


def test_shards_that_fit_are_found_where_no_other_plan_does(monkeypatch):
    model = dx.load(models.encoder())
    shapes = {spec.name: (1, 512, *spec.shape[2:]) for spec in model.inputs}
    whole = model.plan(Sharded("sequence", 2), shapes=shapes).at().summary
    room = whole.memory.task_bytes / 2
    small = Cluster(workers=2, threads=1, memory_limit=room + PROCESS_BYTES)
    monkeypatch.setattr(auto_sharding, "cluster_facts", lambda client: small)
    found = auto_sharding.shards_that_fit(model._facts, shapes=shapes, session=None, client=None)
    assert found.strategy.n > 2
    assert found.at().summary.memory.task_bytes <= room


def test_weights_in_files_are_not_copied_into_the_store(tmp_path):
    path, width = tmp_path / "product.onnx", 128
    x, w = weights(1, 8, width), weights(width, width, seed=1)
    shape = ["N", "T", width]
    proto = make_model(
        [node("MatMul", "x w", "y", "product")],
        [value("x", shape)],
        [value("y", shape)],
        {"w": w},
    )
    onnx.save_model(proto, path, save_as_external_data=True, location="w", size_threshold=0)
    with dask.config.set({"onnx.store.directory": str(tmp_path / "store")}):
        model = dx.load(path)
        plan = model.plan(Sharded({"x": 1}, 2), shapes={"x": x.shape})
        lazy = model.predict(da.from_array(x, chunks=-1), plan=plan)
        sharded_model, store = plan.at().partitioned.model, Store()
        assert store.has(sharded_model.token)
        assert set(store.places(sharded_model.token)) == set(sharded_model.blob_keys) != set()
        assert not any((store.blobs / key).exists() for key in sharded_model.blob_keys)
        np.testing.assert_allclose(lazy.compute(), x @ w, rtol=1e-4, atol=1e-4)


def test_shards_are_charged_for_requests_tasks_and_hops():
    summary = dx.load(models.encoder()).plan(Sharded("sequence", 2)).at().summary
    costs = CostTable(seconds_per_request=10.0, seconds_per_task=2.0, seconds_per_hop=1.0)
    work = summary.critical_work_seconds
    sent = 2 * summary.gathered_bytes / costs.link_bytes_per_second
    assert summary.seconds_on(costs, 3.0) == pytest.approx(
        10.0 + 2.0 * summary.steps + 3.0 * work + sent
    )
    assert summary.steps > 1 and work > 0
