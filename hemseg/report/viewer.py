"""``report.html``: one file that opens offline, with the slices, the mask, the lesions and the disclaimer in it.

Hounsfield units are squeezed into 8 bits, finely where brain and blood lie, coarsely in air and bone, so that each
slice is a small PNG and the page can still change its window.
"""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hemseg.io.files import write_text
from hemseg.names import printable
from hemseg.segmentation import Segmentation

# grey level -> HU: single HU from -20 to 100, coarser steps outside
HU_OF_LEVEL = np.concatenate(
    [
        np.linspace(-1000, -200, 9)[:-1],
        np.arange(-200, -20, 10),
        np.arange(-20, 100, 1),
        np.arange(100, 300, 5),
        np.linspace(300, 2000, 256 - 8 - 18 - 120 - 40),
    ]
).astype(np.float32)
WINDOWS = {"brain": (0, 80), "subdural": (-50, 150), "bone": (-500, 1500)}
MANY, PIXELS, PIXELS_OF_MANY = 64, 512, 256  # beyond so many slices, pictures of half the size


def write_page(result: Segmentation, found: dict[str, Any], path: Path) -> None:
    """Write the page of a result, all or nothing.

    Args:
        found: `hemseg.report.findings.findings`.

    Raises:
        HemsegError: it cannot be written.
    """
    write_text(page(result, found), path)


def page(result: Segmentation, found: dict[str, Any]) -> str:
    """The page as text. Whatever comes from files or headers is escaped."""
    data = json.dumps(_slices(result)).replace("<", "\\u003c")  # no text may end the script
    facts = {
        "volume": f"{found['volume_ml']:.1f} mL in {len(found['lesions'])} lesion{'s' * (len(found['lesions']) != 1)}"
        if found["lesions"]
        else "no hemorrhage found",
        "scan": _geometry(result),
        "series": found["series"],
        "hemseg": f"{found['hemseg']}, weights {found['weights']['name']} {found['weights']['version']} "
        f"({found['weights']['sha256'][:12]}), {found['device']}, {found['seconds']:.1f} s",
    }
    rows = "".join(f"<dt>{key}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items() if value)
    red = len(found["implausible"])  # they are the first of the warnings
    warned = "".join(
        f'<li class="implausible">Implausible: {html.escape(text)}</li>' if i < red else f"<li>{html.escape(text)}</li>"
        for i, text in enumerate(found["warnings"])
    )
    parts = {
        "MARK": html.escape(found["made_by"]),
        "TITLE": html.escape(printable(found["case"])),
        "NOTICE": html.escape(found["notice"]),
        "FACTS": rows,
        "WARNINGS": f'<ul class="warnings">{warned}</ul>' if warned else "",
        "LESIONS": _lesion_rows(result, found),
        "DATA": data,
    }
    # in one pass: a file may be called @DATA@
    return re.sub("@([A-Z]+)@", lambda place: parts[place[1]], PAGE)


def _geometry(result: Segmentation) -> str:
    z, y, x = result.volume.hu.shape
    return f"{x} × {y} × {z} voxels of {' × '.join(f'{v:.2f}' for v in result.volume.spacing)} mm"


def _lesion_rows(result: Segmentation, found: dict[str, Any]) -> str:
    """Table rows; each knows the picture to go to."""
    volume = result.volume
    rows = []
    for lesion in found["lesions"]:
        index = np.linalg.solve(volume.cosines, np.array(lesion["centroid_mm"]) - volume.origin) / volume.spacing
        voxel = np.clip(np.round(index[::-1]).astype(int), 0, np.array(volume.hu.shape) - 1)
        z = int(volume.indices_in_lps(voxel[None])[0, 0])
        first, last = lesion["slices"]
        centroid = ", ".join(f"{v:.0f}" for v in lesion["centroid_mm"])
        rows.append(
            f'<tr tabindex="0" data-slice="{z}"><td>{lesion["volume_ml"]:.1f}</td><td>{lesion["side"]}</td>'
            f"<td>{first + 1}–{last + 1}</td><td>{centroid}</td><td>{lesion['mean_hu']:.0f}</td>"
            f"<td>{lesion['skull_mm']:.0f}</td></tr>"
        )
    return "".join(rows) or '<tr><td colspan="6">none</td></tr>'


def _slices(result: Segmentation) -> dict[str, Any]:
    """Pictures, masks and areas, from inferior to superior, the patient's right on the left."""
    hu, (mm_z, mm_y, mm_x) = result.volume.in_lps()
    mask, _ = result.volume.with_voxels(result.mask).in_lps()
    most = PIXELS if len(hu) <= MANY else PIXELS_OF_MANY
    scale = min(1.0, most / max(hu.shape[1:]))
    size = (max(1, round(hu.shape[2] * scale)), max(1, round(hu.shape[1] * scale)))
    middles = (HU_OF_LEVEL[1:] + HU_OF_LEVEL[:-1]) / 2
    pictures, masks = [], []
    for plane, blood in zip(hu, mask, strict=True):
        small = cv2.resize(np.ascontiguousarray(plane, np.float32), size, interpolation=cv2.INTER_AREA)
        pictures.append(_png(np.searchsorted(middles, small).astype(np.uint8)))
        found = cv2.resize(np.ascontiguousarray(blood), size, interpolation=cv2.INTER_NEAREST)
        masks.append(_png(found * np.uint8(255)) if found.any() else "")
    return {
        "pictures": pictures,
        "masks": masks,
        "area_cm2": [round(float(m.sum()) * mm_y * mm_x / 100, 2) for m in mask],
        "levels": [round(float(v), 1) for v in HU_OF_LEVEL],
        "windows": WINDOWS,
        "size": size,
        "aspect": (size[0] * hu.shape[1] * mm_y) / (size[1] * hu.shape[2] * mm_x),
        "mm_z": mm_z,
    }


def _png(array: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", array)[1].tobytes()).decode()


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="@MARK@"><title>hemseg: @TITLE@</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
 :root { color-scheme: dark }
 body { font: 15px/1.45 system-ui, sans-serif; margin: 0; background: #16181b; color: #e6e6e6 }
 main { display: grid; grid-template-columns: minmax(18rem, 42rem) minmax(18rem, 1fr); gap: 1.5rem; padding: 1rem 1.5rem }
 h1 { font-size: 1.15rem; margin: 1rem 1.5rem 0; overflow-wrap: anywhere }
 .notice { margin: .3rem 1.5rem 0; color: #f0b429 }
 canvas { width: 100%; background: #000; border-radius: 6px; display: block; touch-action: none }
 .bar { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .6rem 0 }
 button { font: inherit; color: inherit; background: #2a2e34; border: 1px solid #444; border-radius: 5px; padding: .25rem .7rem;
   cursor: pointer }
 button[aria-pressed=true] { background: #35608f; border-color: #6ea8e6 }
 input[type=range] { flex: 1; min-width: 8rem }
 dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0 0 1rem } dt { color: #9aa3ad }
 dd { margin: 0; overflow-wrap: anywhere } .warnings { color: #f0b429 } .warnings .implausible { color: #ff6b6b; font-weight: 600 } h2 { font-size: 1rem; margin: 1.2rem 0 .4rem }
 table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid #333 }
 tr[data-slice] { cursor: pointer } tr[data-slice]:hover { background: #23272c } svg { width: 100%; height: 110px; border-left: 1px solid #444; border-bottom: 1px solid #444 }
 .view { position: relative } .view span { position: absolute; bottom: .4rem; color: #9aa3ad; pointer-events: none }
 .axis { display: flex; justify-content: space-between; color: #9aa3ad; font-size: .85rem; margin: 0 }
 .hint { color: #9aa3ad; font-size: .85rem } @media (max-width: 50rem) { main { grid-template-columns: 1fr } }
</style></head><body>
<h1>@TITLE@</h1>
<p class="notice">@NOTICE@ Not for diagnosis, triage or treatment.</p>
<main>
<section>
 <div class="view"><canvas id="view" tabindex="0" aria-label="slice"></canvas>
 <span style="left: .6rem">R</span><span style="right: .6rem">L</span></div>
 <div class="bar"><input id="slice" type="range" min="0" value="0" aria-label="slice"><output id="where"></output> <output id="hu"></output></div>
 <div class="bar"><span id="windows"></span><button id="mask" aria-pressed="true">mask</button></div>
 <p class="hint">Mouse wheel or arrow keys: slices. 1, 2, 3: window. M: mask on and off. The pointer reads HU. The patient's right is on the left.</p>
</section>
<section>
 <dl>@FACTS@</dl>@WARNINGS@
 <h2>Area of hemorrhage by slice, from inferior to superior</h2>
 <p class="axis"><span id="most"></span></p>
 <svg id="plot" role="img" aria-label="area by slice" preserveAspectRatio="none"></svg>
 <p class="axis"><span>1</span><span>slice</span><span id="last"></span></p>
 <h2>Lesions</h2>
 <table><thead><tr><th>mL</th><th>side</th><th>slices</th><th>centroid (mm, LPS)</th><th>mean HU</th><th>mm to skull</th></tr></thead>
 <tbody id="lesions">@LESIONS@</tbody></table>
</section>
</main>
<script>
"use strict";
const data = @DATA@;
const view = document.getElementById("view"), slider = document.getElementById("slice"), where = document.getElementById("where");
const maskButton = document.getElementById("mask"), plot = document.getElementById("plot");
const [width, height] = data.size, n = data.pictures.length, cache = new Map();
let drawn = null, now = data.area_cm2.indexOf(Math.max(...data.area_cm2)), shown = true, current = "brain";
if (Math.max(...data.area_cm2) === 0) now = n >> 1;
view.width = width; view.height = height; view.style.aspectRatio = String(1 / (height / width * data.aspect)); slider.max = n - 1;
const pen = view.getContext("2d", {willReadFrequently: true});

function levels(png) {  // grey levels of a PNG
  if (!cache.has(png)) cache.set(png, new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => {
      const sheet = document.createElement("canvas");
      sheet.width = width; sheet.height = height;
      const brush = sheet.getContext("2d", {willReadFrequently: true});
      brush.drawImage(image, 0, 0);
      done(brush.getImageData(0, 0, width, height).data);
    };
    image.onerror = failed;
    image.src = "data:image/png;base64," + png;
  }));
  if (cache.size > 60) cache.delete(cache.keys().next().value);
  return cache.get(png);
}

async function draw() {
  const slice = now;
  const [low, high] = data.windows[current];
  const grey = data.levels.map(hu => 255 * Math.min(1, Math.max(0, (hu - low) / (high - low))));
  const [pixels, blood] = await Promise.all([
    levels(data.pictures[slice]), shown && data.masks[slice] ? levels(data.masks[slice]) : null]);
  if (slice !== now) return;
  const out = pen.createImageData(width, height);
  for (let i = 0, p = 0; i < width * height; i++, p += 4) {
    const v = grey[pixels[p]];
    let edge = false;
    if (blood && blood[p]) {
      const x = i % width;
      edge = !blood[p - 4 * width] || !blood[p + 4 * width] || x === 0 || x === width - 1 || !blood[p - 4] || !blood[p + 4];
    }
    const share = edge ? 1 : blood && blood[p] ? 0.25 : 0;
    out.data[p] = v + (255 - v) * share; out.data[p + 1] = v * (1 - share) + 40 * share; out.data[p + 2] = v * (1 - share) + 40 * share;
    out.data[p + 3] = 255;
  }
  pen.putImageData(out, 0, 0);
  drawn = pixels; tell();
  slider.value = slice;
  where.textContent = `${slice + 1} of ${n}, ${data.area_cm2[slice].toFixed(1)} cm²`;
  document.getElementById("cursor").setAttribute("x", slice);
  document.body.dataset.slice = slice;
}
let pointer = null;  // where it is on the picture, if it is
function tell() {
  const [x, y] = pointer || [-1, -1];
  const inside = drawn && x >= 0 && y >= 0 && x < width && y < height;
  document.getElementById("hu").textContent = inside ? `${Math.round(data.levels[drawn[4 * (y * width + x)]])} HU` : "";
}
function go(to) { now = Math.min(n - 1, Math.max(0, to)); draw(); }
function toggle() { shown = !shown; maskButton.setAttribute("aria-pressed", shown); draw(); }
function use(name) {
  current = name;
  document.querySelectorAll("#windows button").forEach(b => b.setAttribute("aria-pressed", b.dataset.name === name));
  draw();
}
for (const name of Object.keys(data.windows)) {
  const button = document.createElement("button");
  button.dataset.name = name; button.textContent = name; button.addEventListener("click", () => use(name));
  document.getElementById("windows").append(button, " ");
}
const most = Math.max(1, ...data.area_cm2);
document.getElementById("most").textContent = `${most.toFixed(1)} cm²`; document.getElementById("last").textContent = n;
plot.setAttribute("viewBox", `0 0 ${n} 100`);
plot.innerHTML = `<rect id="cursor" y="0" width="1" height="100" fill="#35608f"/>` + data.area_cm2.map((area, i) =>
  `<rect x="${i + 0.1}" y="${100 - 100 * area / most}" width="0.8" height="${100 * area / most}" fill="#e25555"/>`).join("");
plot.addEventListener("click", e => { const box = plot.getBoundingClientRect(); go(Math.floor((e.clientX - box.left) / box.width * n)); });
slider.addEventListener("input", () => go(+slider.value));
maskButton.addEventListener("click", toggle);
view.addEventListener("pointermove", e => {
  const box = view.getBoundingClientRect();
  pointer = [Math.floor((e.clientX - box.left) / box.width * width), Math.floor((e.clientY - box.top) / box.height * height)]; tell();
});
view.addEventListener("pointerleave", () => { pointer = null; tell(); });
view.addEventListener("wheel", e => { e.preventDefault(); go(now - Math.sign(e.deltaY)); }, {passive: false});
document.querySelectorAll("tr[data-slice]").forEach(row => row.addEventListener("click", () => go(+row.dataset.slice)));
document.addEventListener("keydown", e => {
  const step = {ArrowUp: 1, ArrowRight: 1, PageUp: 5, ArrowDown: -1, ArrowLeft: -1, PageDown: -5}[e.key];
  if (step) { e.preventDefault(); go(now + step); }
  else if (e.key === "Home") go(0);
  else if (e.key === "End") go(n - 1);
  else if (e.key === "m" || e.key === "M") toggle();
  else if ("123".includes(e.key)) use(Object.keys(data.windows)[+e.key - 1]);
});
use("brain");
</script>
</body></html>
"""  # noqa: E501
