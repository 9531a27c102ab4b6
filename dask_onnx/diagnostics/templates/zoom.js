"use strict";
// Zoom of each picture: buttons, Ctrl + wheel or a pinch; drag to move; double-click for the whole.
for (const picture of document.querySelectorAll(".dask-onnx-plan .picture")) {
  const svg = picture.querySelector("svg");
  const home = svg.getAttribute("viewBox").split(" ").map(Number);
  let view = [...home], held = null;
  const show = () => {
    svg.setAttribute("viewBox", view.join(" "));
    svg.style.cursor = view[2] < home[2] ? "grab" : "auto";
  };
  const point = (event) => new DOMPoint(event.clientX, event.clientY)
    .matrixTransform(svg.getScreenCTM().inverse());
  const zoom = (factor, at) => {
    const size = Math.min(Math.max(view[2] * factor, home[2] / 40), home[2]);
    const share = size / view[2];
    view = [at.x - (at.x - view[0]) * share, at.y - (at.y - view[1]) * share,
      size, view[3] * share];
    if (size === home[2]) view = [...home];
    show();
  };
  const middle = () => ({ x: view[0] + view[2] / 2, y: view[1] + view[3] / 2 });
  const bar = document.createElement("div");
  bar.className = "zoom";
  for (const [text, title, act] of [
    ["+", "zoom in (Ctrl + wheel)", () => zoom(1 / 1.5, middle())],
    ["\u2212", "zoom out (Ctrl + wheel)", () => zoom(1.5, middle())],
    ["fit", "show the whole picture (double-click)", () => { view = [...home]; show(); }],
  ]) {
    const button = document.createElement("button");
    button.textContent = text;
    button.title = title;
    button.addEventListener("click", act);
    bar.append(button);
  }
  picture.before(bar);
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1 / 1.2 : 1.2, point(event));
  }, { passive: false });
  svg.addEventListener("dblclick", () => { view = [...home]; show(); });
  svg.addEventListener("pointerdown", (event) => {
    if (view[2] < home[2]) { held = point(event); svg.setPointerCapture(event.pointerId); }
  });
  svg.addEventListener("pointermove", (event) => {
    if (held === null) return;
    const now = point(event);
    view[0] += held.x - now.x;
    view[1] += held.y - now.y;
    show();
  });
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { held = null; });
}
