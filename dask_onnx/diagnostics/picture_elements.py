"""Elements of a picture as SVG: the canvas with its style for light and dark pages, and texts."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree

_LIGHT = {"paper": "#ffffff", "ink": "#111111", "faint": "#555555", "line": "#7c8794"}
_DARK = {"paper": "#16191d", "ink": "#eceff1", "faint": "#aab2bb", "line": "#8b96a3"}
"""Colour of each part of a picture outside its boxes, which are light on any page."""
BOX_INK, BOX_FAINT = "#111111", "#333333"
"""Colours of texts in boxes."""
_CLASS = "dask-onnx-picture"


def _rules(before: str, colours: Mapping[str, str]) -> str:
    """Return the style of all parts, for elements inside what `before` selects."""
    found = [f"{before}.{_CLASS} .{name}{{fill:{colours[name]}}}" for name in colours]
    return "".join(found) + f"{before}.{_CLASS} .stroke{{stroke:{colours['line']};fill:none}}"


_STYLE = (
    # A picture that is opened by itself shrinks to the window; inside a page, the page decides.
    f"svg:root{{max-width:100%;max-height:100vh;background:{_LIGHT['paper']}}}"
    f"@media screen and (prefers-color-scheme:dark){{{_rules('', _DARK)}"
    f"svg:root{{background:{_DARK['paper']}}}}}"
    # JupyterLab has a theme of its own.
    + _rules("[data-jp-theme-light=true] ", _LIGHT)
    + _rules("[data-jp-theme-light=false] ", _DARK)
)


def canvas(width: float, height: float, title: str) -> ElementTree.Element:
    """Return an empty picture with a background, of a size in pixels."""
    svg = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
    )
    svg.set("class", _CLASS)
    svg.set("aria-label", title)
    # The style sheet of a page limits how far it shrinks the picture, relative to this width.
    svg.set("style", f"--width: {width:.0f}px")
    svg.set("font-family", "Helvetica, Arial, sans-serif")
    ElementTree.SubElement(svg, "style").text = _STYLE
    paper = ElementTree.SubElement(svg, "rect", width="100%", height="100%", fill=_LIGHT["paper"])
    paper.set("class", "paper")
    return svg


def add_text(
    parent: ElementTree.Element,
    x: float,
    y: float,
    content: str,
    *,
    size: int,
    part: str = "ink",
    fill: str | None = None,
    weight: str = "normal",
    anchor: str = "start",
) -> ElementTree.Element:
    """Add a text, of a part of the picture ("ink" or "faint") or of a colour of its own.

    Parameters
    ----------
    x, y : float
        Pixels of the base line's start, middle or end, as `anchor` says.
    """
    element = ElementTree.SubElement(parent, "text", x=f"{x:.1f}", y=f"{y:.1f}")
    element.set("fill", fill or _LIGHT[part])
    if fill is None:
        element.set("class", part)
    element.set("font-size", str(size))
    element.set("font-weight", weight)
    element.set("text-anchor", anchor)
    element.text = content
    return element


def add_line(parent: ElementTree.Element, path: str, thickness: float) -> ElementTree.Element:
    """Add a line along an SVG path, of a thickness in pixels."""
    line = ElementTree.SubElement(parent, "path", d=path, fill="none", stroke=_LIGHT["line"])
    line.set("class", "stroke")
    line.set("stroke-width", f"{thickness:.1f}")
    line.set("stroke-opacity", "0.8")
    return line


def add_arrowhead(parent: ElementTree.Element, path: str) -> None:
    """Add the filled head of a line."""
    head = ElementTree.SubElement(parent, "path", d=path, fill=_LIGHT["line"])
    head.set("class", "line")
