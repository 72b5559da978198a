// Hovering a word, or its region, dims the rest of the picture and names the word.
const seen = new WeakMap(); // label image -> its pixels

function labels(stage) {
  const image = stage.querySelector("img.labels");
  if (!image?.naturalWidth) return null;
  if (!seen.has(image)) {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    seen.set(image, context.getImageData(0, 0, canvas.width, canvas.height));
  }
  return seen.get(image);
}

function show(stage, label) {
  const found = labels(stage);
  if (!found || stage.dataset.shown === String(label)) return;
  stage.dataset.shown = String(label);
  const canvas = stage.querySelector("canvas.dim");
  canvas.width = found.width;
  canvas.height = found.height;
  const context = canvas.getContext("2d");
  const dim = context.createImageData(found.width, found.height);
  for (let i = 0; i < dim.data.length; i += 4) {
    const other = label !== null && found.data[i] !== label; // grey: red is the label itself
    dim.data.set([255, 255, 255, other ? 190 : 0], i);
  }
  context.putImageData(dim, 0, 0);
  for (const key of stage.nextElementSibling.querySelectorAll(".key")) {
    key.classList.toggle("on", Number(key.dataset.k) === label && label !== null);
  }
}

function tell(stage, event) {
  const found = labels(stage);
  if (!found) return;
  const box = stage.querySelector("img.painted").getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * found.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * found.height);
  if (x < 0 || y < 0 || x >= found.width || y >= found.height) return leave(stage);
  const label = found.data[4 * (y * found.width + x)];
  show(stage, label);
  const key = stage.nextElementSibling.querySelector(`.key[data-k="${label}"]`);
  const tip = stage.querySelector(".tip");
  tip.hidden = !key;
  tip.textContent = key ? key.textContent : "";
  tip.style.left = `${event.clientX - box.left + 12}px`;
  tip.style.top = `${event.clientY - box.top + 12}px`;
}

function leave(stage) {
  const tip = stage.querySelector(".tip");
  if (tip) tip.hidden = true;
  show(stage, null);
}

function keyOf(event) {
  const key = event.target.closest(".key");
  return key ? [key.closest(".legend").previousElementSibling, Number(key.dataset.k)] : null;
}

for (const name of ["mouseover", "focusin"]) {
  element.addEventListener(name, (event) => {
    const found = keyOf(event);
    if (found) show(...found);
  });
}
for (const name of ["mouseout", "focusout"]) {
  element.addEventListener(name, (event) => {
    const found = keyOf(event);
    if (found) show(found[0], null);
  });
}
element.addEventListener("mousemove", (event) => {
  const stage = event.target.closest(".stage");
  if (stage) tell(stage, event);
});
element.addEventListener("mouseout", (event) => {
  const stage = event.target.closest(".stage");
  if (stage && !stage.contains(event.relatedTarget)) leave(stage);
});
