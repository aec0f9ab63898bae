// Slices to scroll through. The page has: data, width, height, n, KEPT (pictures in memory), now, current, pointer, draw, showHu.
const slider = document.getElementById("slice"), plot = document.getElementById("plot"), cache = new Map();
slider.max = n - 1;

function levels(png) {  // grey levels of a PNG; null where there is none
  if (!png) return null;
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
  if (cache.size > KEPT) cache.delete(cache.keys().next().value);
  return cache.get(png);
}
function greys() {  // of each level in the present window, 0..255
  const [low, high] = data.windows[current];
  return data.levels.map(hu => 255 * Math.min(1, Math.max(0, (hu - low) / (high - low))));
}
function penOf(view) {
  view.width = width; view.height = height; view.style.aspectRatio = String(1 / (height / width * data.aspect));
  view.addEventListener("pointermove", e => {
    const box = view.getBoundingClientRect();
    pointer = [Math.floor((e.clientX - box.left) / box.width * width), Math.floor((e.clientY - box.top) / box.height * height)]; showHu();
  });
  view.addEventListener("pointerleave", () => { pointer = null; showHu(); });
  view.addEventListener("wheel", e => { e.preventDefault(); go(now - Math.sign(e.deltaY)); }, {passive: false});
  return view.getContext("2d", {willReadFrequently: true});
}
function pixelAtPointer() {  // its number, or -1
  const [x, y] = pointer || [-1, -1];
  return x >= 0 && y >= 0 && x < width && y < height ? y * width + x : -1;
}
function plotAreas(most, bars) {
  document.getElementById("most").textContent = `${most.toFixed(1)} cm²`; document.getElementById("last").textContent = n;
  plot.setAttribute("viewBox", `0 0 ${n} 100`);
  plot.innerHTML = `<rect id="cursor" y="0" width="1" height="100" fill="#35608f"/>` + bars.map(({areas, left, wide, color}) => areas.map((area, i) =>
    `<rect x="${i + left}" y="${100 - 100 * area / most}" width="${wide}" height="${100 * area / most}" fill="${color}"/>`).join("")).join("");
}
function show(slice, text) {
  slider.value = slice;
  document.getElementById("where").textContent = `${slice + 1} of ${n}, ${text}`;
  document.getElementById("cursor").setAttribute("x", slice);
  document.body.dataset.slice = slice;
}
function go(to) { now = Math.min(n - 1, Math.max(0, to)); draw(); }
function use(name) {
  current = name;
  document.querySelectorAll("#windows button").forEach(b => b.setAttribute("aria-pressed", b.dataset.name === name));
  draw();
}
const stepOf = e => ({ArrowUp: 1, ArrowRight: 1, PageUp: 5, ArrowDown: -1, ArrowLeft: -1, PageDown: -5}[e.key]);
function moved(e) {  // whether a key goes to another slice or window
  const step = stepOf(e);
  if (step) { e.preventDefault(); go(now + step); }
  else if (e.key === "Home") go(0);
  else if (e.key === "End") go(n - 1);
  else if ("123".includes(e.key)) use(Object.keys(data.windows)[+e.key - 1]);
  else return false;
  return true;
}
for (const name of Object.keys(data.windows)) {
  const button = document.createElement("button");
  button.dataset.name = name; button.textContent = name; button.addEventListener("click", () => use(name));
  document.getElementById("windows").append(button, " ");
}
plot.addEventListener("click", e => { const box = plot.getBoundingClientRect(); go(Math.floor((e.clientX - box.left) / box.width * n)); });
slider.addEventListener("input", () => go(+slider.value));
document.querySelectorAll("tr[data-slice]").forEach(row => row.addEventListener("click", () => go(+row.dataset.slice)));
