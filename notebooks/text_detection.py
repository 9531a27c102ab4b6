# %% [markdown]
# # Text detection on page images
#
# Cuts windows out of scanned pages, runs PP-OCR's text detector over them with
# `dask-onnx predict` on a local cluster of two processes, and draws the detected text over the
# pages. `make demo` runs this file.

# %%
from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

WINDOW = 320
"""Height and width of a window, in pixels."""
STRIDE = 128
"""Pixels from one window to the next; windows overlap, so that no line is cut in all of them."""
SCALE = 3
"""Enlargement of the pages, whose letters are smaller than those the detector was trained on."""
THRESHOLD = 0.3
"""Probability from which a pixel counts as text; PP-OCR's own default."""

Array = npt.NDArray[np.float32]

# %% [markdown]
# ## Windows


# %%
def starts(length: int) -> list[int]:
    """Return the first pixels of windows along an axis that cover all of it."""
    return sorted({*range(0, length - WINDOW, STRIDE), length - WINDOW})


def places(page: Image.Image) -> list[tuple[int, int]]:
    """Return the upper left corners (x, y) of the windows of a page."""
    return [(x, y) for y in starts(page.height) for x in starts(page.width)]


def enlarge(path: Path) -> Image.Image:
    with Image.open(path) as image:
        page = image.convert("RGB")
    return page.resize((page.width * SCALE, page.height * SCALE), Image.Resampling.BICUBIC)


def write_windows(pages: list[Image.Image], folder: Path) -> int:
    """Write one PNG for each window, named in the order of the pages; return their number."""
    folder.mkdir(parents=True)
    count = 0
    for page in pages:
        for x, y in places(page):
            page.crop((x, y, x + WINDOW, y + WINDOW)).save(folder / f"{count:04d}.png")
            count += 1
    return count


# %% [markdown]
# ## Prediction


# %%
def predict(model: Path, windows: Path, result: Path) -> None:
    """Run `dask-onnx predict` in the folder of `ocr_steps.py`, which the tasks import."""
    command = [sys.executable, "-m", "dask_onnx", "predict", str(model), f"{windows}/*.png"]
    command += [str(result), "--pre", "ocr_steps:prepare", "--workers", "2", "--threads", "1"]
    print("$ dask-onnx", *command[3:], flush=True)
    subprocess.run(command, check=True, cwd=Path(__file__).parent)


# %% [markdown]
# ## Picture


# %%
def stitch(page: Image.Image, maps: Array) -> Array:
    """Return the probabilities of a page, shape (height, width), the maximum of all windows."""
    whole = np.zeros((page.height, page.width), np.float32)
    for (x, y), window in zip(places(page), maps, strict=True):
        part = whole[y : y + WINDOW, x : x + WINDOW]
        np.maximum(part, window, out=part)
    return whole


def draw(page: Image.Image, probability: Array) -> Image.Image:
    """Return the page with the detected text tinted and outlined."""
    mask = Image.fromarray(((probability > THRESHOLD) * 255).astype(np.uint8), "L")
    tint = Image.new("RGB", page.size, (255, 140, 0))
    drawn = Image.composite(Image.blend(page, tint, 0.35), page, mask)
    outline = mask.filter(ImageFilter.FIND_EDGES).filter(ImageFilter.MaxFilter(3))
    drawn.paste((200, 30, 0), mask=outline)
    return drawn


def stack(pages: list[Image.Image], title: str) -> Image.Image:
    """Return the pages stacked vertically, below a line of text."""
    width = max(page.width for page in pages)
    height = sum(page.height + 16 for page in pages) + 40
    sheet = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(sheet).text((12, 12), title, fill="black", font_size=18)
    top = 40
    for page in pages:
        sheet.paste(page, (0, top))
        top += page.height + 16
    return sheet


# %%
def main(assets: Path, output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    pages = [enlarge(assets / name) for name in ("page.png", "text.png")]
    windows = output / "windows"
    count = write_windows(pages, windows)
    print(f"{count} windows of {WINDOW} x {WINDOW} pixels from {len(pages)} pages", flush=True)
    result = output / "probabilities.npy"
    predict(assets / "det.onnx", windows, result)
    maps = np.load(result)[:, 0]
    drawn, first = [], 0
    for page in pages:
        number = len(places(page))
        drawn.append(draw(page, stitch(page, maps[first : first + number])))
        first += number
    share = float((maps > THRESHOLD).mean())
    picture = output / "detected_text.png"
    title = f"PP-OCR text detection, {count} windows: {share:.0%} of the pixels are text"
    stack(drawn, title).save(picture)
    print(f"{share:.1%} of the pixels are text; the picture is {picture}")


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Text detection on page pictures.")
    parser.add_argument("--assets", type=Path, required=True, help="det.onnx, page.png, text.png")
    parser.add_argument("--output", type=Path, required=True, help="a folder, made anew")
    arguments = parser.parse_args()
    main(arguments.assets.resolve(), arguments.output.resolve())
