"""Rules for sizes, against the sizes that the authors' own code gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dask_onnx as dx
from dask_onnx.collections.images.resize import Placement, Resize, parse_resize, parse_size

SIDES = st.integers(1, 3000)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("none", Resize("none")),
        ("640", Resize("stretch", 640, 640)),
        ("640x480", Resize("stretch", 480, 640)),
        ("stretch=640x480", Resize("stretch", 480, 640)),
        ("shorter=256", Resize("shorter", 256)),
        ("shorter=800,max=1333", Resize("shorter", 800, longest=1333)),
        ("longer=1024", Resize("longer", 1024)),
        ("letterbox=640", Resize("letterbox", 640, 640)),
        ("letterbox=640x480,fill=0", Resize("letterbox", 480, 640, fill=0)),
        ("multiple=32", Resize("multiple", multiple=32)),
        ("multiple=32,max=960", Resize("multiple", multiple=32, longest=960)),
        ("height=48,width=192", Resize("height", 48, 192, shortest=1, fill=None)),
        ((480, 640), Resize("stretch", 480, 640)),
        (224, Resize("stretch", 224, 224)),
    ],
)
def test_texts_and_sizes_are_parsed(text, rule):
    assert parse_resize(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "big",
        "0",
        "-5",
        "640x",
        "shorter",
        "shorter=",
        "shorter=256x128",
        "letterbox=640,fill=300",
        "letterbox=640,max=3",
        "multiple=32,min=2,min=3",
        "640,max=3",
        "99999999",
        (1, 2, 3),
        (0, 5),
        1.5,
        True,
        None,
    ],
)
def test_other_texts_are_refused_by_the_name_of_the_option(text):
    with pytest.raises(dx.InputError) as caught:
        parse_resize(text)
    assert caught.value.option == "resize"


def test_a_text_is_width_by_height_and_a_pair_is_height_and_width():
    assert parse_size("640x480", "crop") == parse_size((480, 640), "crop") == (480, 640)


@pytest.mark.parametrize(
    ("rule", "size", "placed"),
    [
        # torchvision.transforms.Resize(256): the longer side is cut off, not rounded.
        ("shorter=256", (480, 641), Placement((256, 341), (256, 341))),
        ("shorter=256", (641, 480), Placement((341, 256), (341, 256))),
        # DETR: 800 at the shorter side would make the longer one 1600.
        ("shorter=800,max=1333", (500, 1000), Placement((666, 1333), (666, 1333))),
        ("shorter=800,max=1333", (480, 640), Placement((800, 1066), (800, 1066))),
        # ultralytics' LetterBox: 427 * 0.5 is 213.5, which rounds to the even 214.
        ("letterbox=320", (427, 640), Placement((214, 320), (320, 320), 53, 0)),
        ("letterbox=320", (640, 427), Placement((320, 214), (320, 320), 0, 53)),
        ("letterbox=640x480", (100, 100), Placement((480, 480), (480, 640), 0, 80)),
        ("letterbox=64", (63, 64), Placement((63, 64), (64, 64), 0, 0)),
        # PaddleOCR's DetResizeForTest: to the nearest multiple of 32, of the limited size.
        ("multiple=32", (333, 500), Placement((320, 512), (320, 512))),
        ("multiple=32,max=960", (1080, 1920), Placement((544, 960), (544, 960))),
        ("multiple=32,min=736", (368, 500), Placement((736, 992), (736, 992))),
        ("multiple=32", (3, 2000), Placement((32, 1984), (32, 1984))),
        # PaddleOCR's orientation: 48 x 192, as wide as the text is, padded on the right.
        ("height=48,width=192", (30, 90), Placement((48, 144), (48, 192))),
        ("height=48,width=192", (30, 900), Placement((48, 192), (48, 192))),
        ("longer=100", (50, 200), Placement((25, 100), (25, 100))),
        ("none", (7, 9), Placement((7, 9), (7, 9))),
    ],
)
def test_pictures_come_to_the_sizes_of_the_authors_code(rule, size, placed):
    assert parse_resize(rule).place(size) == placed


@given(height=SIDES, width=SIDES, side=st.integers(8, 700))
def test_a_letterboxed_picture_lies_inside_and_touches_two_borders(height, width, side):
    placed = Resize("letterbox", side, side).place((height, width))
    assert placed.canvas == (side, side)
    for own, start in zip(placed.size, (placed.top, placed.left), strict=True):
        assert start >= 0 and start + own <= side
    assert max(placed.size) == side


@given(height=SIDES, width=SIDES, step=st.sampled_from([1, 8, 32, 64]))
def test_multiples_are_multiples_and_near_the_picture(height, width, step):
    placed = Resize("multiple", multiple=step).place((height, width))
    for own, given_side in zip(placed.size, (height, width), strict=True):
        assert own % step == 0 and own >= step
        assert abs(own - given_side) <= max(step, 1)
