"""Bound on what tiles keep between passes: beyond it, later passes compute it again."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from builders import node, run_onnx
from tiles.test_tile_plan import plan_for
from tiles.test_tiled_statistics import squeeze_and_excite
from tiles.tiled_models import CONSTANTS, conv, model_of, random_image

import dask_onnx as dx
from dask_onnx.tiles.keeping import kept_bytes, with_bounded_tiles
from dask_onnx.tiles.predict import predict_tiled

MIB = 2**20


def three_passes():
    constants = dict(CONSTANTS)
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        *squeeze_and_excite("a", "b", 3, constants),
        conv("b w", "c", pads=[1] * 4, strides=[2, 2]),
        *squeeze_and_excite("c", "d", 3, constants),
        conv("d w", "y", pads=[1] * 4),
    ]
    return nodes, constants


def test_the_bytes_that_are_kept_fit_in_the_limit():
    nodes, constants = three_passes()
    plan = plan_for(nodes, constants, (1, 3, 1024, 1024), 256)
    everything = kept_bytes(plan)
    assert everything == (12 + 3) * MIB  # at full size, and at half the size
    assert with_bounded_tiles(plan, everything) is plan
    assert kept_bytes(with_bounded_tiles(plan, 4 * MIB)) == 3 * MIB
    assert kept_bytes(with_bounded_tiles(plan, 0)) == 0


def test_what_is_kept_at_a_limit_does_not_grow_with_the_image():
    nodes, constants = three_passes()
    for side in (512, 1024, 4096):
        plan = with_bounded_tiles(plan_for(nodes, constants, (1, 3, side, side), 256), 5 * MIB)
        assert kept_bytes(plan) <= 5 * MIB


@pytest.mark.parametrize("limit", [0, 2000, "8 kB"])
def test_passes_that_compute_again_equal_the_untiled_result(limit):
    nodes, constants = three_passes()
    proto, image = model_of(nodes, constants), random_image(1, 3, 40, 48)
    expected = run_onnx(proto, {"x": image})[0]
    for given in (image, da.from_array(image, 17), da.from_array(image, 17).persist()):
        found = predict_tiled(dx.load(proto), given, tile=16, keep_limit=limit)
        np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=2e-5)


def test_the_image_is_loaded_again_for_each_pass():
    loads = []

    def load(block, block_info=None):
        loads.append(block_info[None]["chunk-location"])
        return block

    nodes, constants = three_passes()
    image = da.ones((1, 3, 32, 32), chunks=(1, 3, 16, 16), dtype=np.float32).map_blocks(
        load, dtype=np.float32, meta=np.empty((0,) * 4, np.float32)
    )
    lazy = predict_tiled(dx.load(model_of(nodes, constants)), image, tile=16, keep_limit=0)
    lazy.compute(scheduler="sync")
    assert len(loads) == 3 * 4


def test_keys_differ_with_the_limit():
    nodes, constants = three_passes()
    model = dx.load(model_of(nodes, constants))
    image = da.ones((1, 3, 32, 32), chunks=16, dtype=np.float32)
    names = {predict_tiled(model, image, tile=16, keep_limit=n).name for n in (None, 0)}
    assert len(names) == 2


def test_a_limit_that_is_no_number_of_bytes_is_refused():
    nodes, constants = three_passes()
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(
            dx.load(model_of(nodes, constants)), random_image(1, 3, 32, 32), keep_limit="much"
        )
    assert caught.value.option == "keep_limit"


def test_statistics_of_an_instance_norm_are_enough_between_passes():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("InstanceNormalization", "a scale bias", "b"),
        node("Relu", "b", "y"),
    ]
    constants = {
        **CONSTANTS,
        "scale": np.ones(3, np.float32),
        "bias": np.zeros(3, np.float32),
    }
    proto, image = model_of(nodes, constants), random_image(1, 3, 40, 48)
    found = predict_tiled(dx.load(proto), image, tile=16, keep_limit=0)
    np.testing.assert_allclose(found, run_onnx(proto, {"x": image})[0], rtol=0, atol=2e-5)
