from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dask_onnx.runtime import codec
from dask_onnx.runtime.codec import _PACK, _UNPACK, apply_loss, choose_encoding, pack, unpack

RNG = np.random.default_rng(0)
SLOW, FAST = 5e6, 50e9

NORMAL = RNG.standard_normal((8, 64, 32, 32)).astype("f4")
RELU = np.maximum(NORMAL, 0)
SPARSE = np.where(RNG.random(NORMAL.shape) < 0.84, 0, NORMAL).astype("f4")
IDS = RNG.integers(0, 30_000, (4000, 128))
PICTURE = np.add.outer(np.arange(512), np.arange(512)).astype("f4")[None, None] / 4


@pytest.fixture(autouse=True)
def equal_seconds(monkeypatch):
    """Let encodings of a sample take the same time: on a busy host it varies by chance."""
    monkeypatch.setattr(codec, "_timed", lambda work, *arguments: (1e-5, work(*arguments)))


def round_trip(array, rate=SLOW, lossy=None):
    packed = pack(array, rate, lossy)
    return packed, unpack(packed.encoding, packed.dtype, packed.shape, packed.frames)


@pytest.mark.parametrize(
    ("array", "encoding"),
    [
        (RELU, "zeros"),
        (SPARSE, "zeros"),
        (IDS, "shuffle"),
        (NORMAL, "raw"),
        (NORMAL[:1, :1], "raw"),
    ],
    ids=["relu", "sparse", "ids", "normal", "small"],
)
def test_the_encoding_fits_the_data(array, encoding):
    packed, back = round_trip(array)
    assert packed.encoding == encoding
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


def test_smooth_pictures_are_packed():
    packed, back = round_trip(PICTURE)
    assert packed.nbytes < 0.6 * PICTURE.nbytes
    np.testing.assert_array_equal(back, PICTURE)


@pytest.mark.parametrize("array", [RELU, SPARSE, IDS, PICTURE], ids=["relu", "sparse", "ids", "p"])
def test_a_fast_link_gets_raw_bytes(array):
    assert choose_encoding(array, FAST) == "raw"
    assert pack(array, None).encoding == "raw"


def test_raw_bytes_are_not_copied():
    packed = pack(NORMAL, None)
    assert np.shares_memory(np.frombuffer(packed.frames[0], "f4"), NORMAL)
    assert np.shares_memory(unpack("raw", packed.dtype, packed.shape, packed.frames), NORMAL)


def test_an_array_that_is_not_contiguous_keeps_its_values():
    turned = RELU.transpose(0, 2, 3, 1)
    _, back = round_trip(turned)
    np.testing.assert_array_equal(back, turned)


@given(
    array=hnp.arrays(
        st.sampled_from([np.dtype(n) for n in "f2 f4 f8 i1 u1 i4 i8 ? c8 c16".split()]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    encoding=st.sampled_from(["raw", "masked", "lz4", "shuffle", "zeros"]),
)
def test_lossless_encodings_keep_every_bit(array, encoding):
    array = np.ascontiguousarray(array).reshape(array.shape)
    back = _UNPACK[encoding](_PACK[encoding](array), array.dtype, array.shape)
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_minus_zero_and_nan_survive_the_mask():
    array = np.zeros(100_000, "f4")
    array[::7], array[::11] = -0.0, np.nan
    packed, back = round_trip(array)
    assert packed.encoding in ("zeros", "lz4")
    assert back.tobytes() == array.tobytes()
    exact = _UNPACK["zeros"](_PACK["zeros"](array), array.dtype, array.shape)
    assert exact.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("lossy", "share", "error"), [("float16", 0.5, 2e-3), ("int8", 0.26, 0.02)]
)
def test_loss_is_bounded_and_saves_bytes(lossy, share, error):
    packed, back = round_trip(NORMAL, lossy=lossy)
    assert packed.encoding == lossy and packed.nbytes <= share * NORMAL.nbytes
    assert np.abs(back - NORMAL).max() <= error * np.abs(NORMAL).max()
    np.testing.assert_array_equal(apply_loss(NORMAL, lossy), back)


def test_each_channel_has_its_own_scale():
    array = NORMAL.copy()
    array[:, 0] *= 1000
    back = apply_loss(array, "int8")
    assert np.abs(back[:, 1] - array[:, 1]).max() < 0.02 * np.abs(array[:, 1]).max()


def test_loss_is_for_floats_only():
    assert round_trip(IDS, lossy="int8")[0].encoding == "shuffle"
    assert apply_loss(IDS, "int8") is IDS


@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3), (2, 0, 3)])
def test_int8_accepts_every_shape(shape):
    array = np.ones(shape, "f4")
    np.testing.assert_allclose(apply_loss(array, "int8"), array, rtol=1e-6)


def test_int8_of_infinities_and_nan_is_finite():
    array = np.array([[np.inf, 1.0], [np.nan, -2.0]], "f4")
    assert np.isfinite(apply_loss(array, "int8")).all()


@pytest.mark.parametrize("size", [1, 1000, 65536, 65537, 200_001])
def test_masked_bytes_come_back_at_every_length(size):
    array = RNG.integers(0, 3, size).astype("u1")
    masked = _PACK["masked"](array)
    assert bytes(masked[0]) != array.tobytes() or size < 8
    np.testing.assert_array_equal(_UNPACK["masked"](masked, array.dtype, array.shape), array)
