// The self-test, and a field to draw in for models of one small grey picture (values 0 to 1, white on black).
import { load, selfTest } from "../index.js";

const at = (id) => document.getElementById(id);
const model = await load();
const about = model.metadata;
at("title").textContent = document.title = about.name;
at("about").textContent = `${(about.model.bytes / 1e3).toFixed(0)} kB, quantized for ${about.target} by edgeq ${about.versions.edgeq}`;

const [input] = about.inputs;
const [height, width] = input.shape.slice(-2);
const grey = about.inputs.length === 1 && input.dtype === "float32" && input.shape.length === 4
  && input.shape[0] === 1 && input.shape[1] === 1 && Math.max(height, width) <= 64;

if (grey) {
  at("drawing").hidden = false;
  const pad = at("pad"), ink = pad.getContext("2d", { willReadFrequently: true });
  const small = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d", { willReadFrequently: true });
  const clear = () => {
    ink.fillStyle = "#000";
    ink.fillRect(0, 0, pad.width, pad.height);
    at("answer").textContent = "–";
    at("scores").replaceChildren();
  };
  let down = false, busy = false, again = false;

  /** The drawing's bounding box, centred and averaged down to the model's picture. */
  const picture = () => {
    const { data } = ink.getImageData(0, 0, pad.width, pad.height);
    let [left, top, right, bottom] = [pad.width, pad.height, 0, 0];
    for (let i = 0; i < data.length; i += 4) {
      if (data[i] < 64) continue;
      const x = (i / 4) % pad.width, y = Math.floor(i / 4 / pad.width);
      left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
    }
    if (right < left) return null;
    const side = Math.max(right - left, bottom - top) * 1.08;
    small.imageSmoothingQuality = "high";
    small.fillRect(0, 0, width, height);
    small.drawImage(pad, (left + right - side) / 2, (top + bottom - side) / 2, side, side, 0, 0, width, height);
    const pixels = small.getImageData(0, 0, width, height).data;
    return Float32Array.from({ length: width * height }, (_, i) => pixels[4 * i] / 255);
  };

  const answer = async () => {
    if (busy) { again = true; return; }
    const seen = picture();
    if (seen === null) return;
    busy = true;
    const { label, index, scores } = await model.classify({ [input.name]: seen });
    const total = scores.reduce((sum, s) => sum + Math.exp(s - scores[index]), 0);
    at("answer").textContent = label;
    const rows = scores.map((s, i) => [about.labels[i] ?? String(i), Math.exp(s - scores[index]) / total]);
    at("scores").replaceChildren(...rows.sort((a, b) => b[1] - a[1]).slice(0, 5).map(([name, share]) => {
      const row = document.createElement("li");
      row.innerHTML = '<span></span><div class="bar"><i></i></div><span></span>';
      row.firstChild.textContent = name;
      row.querySelector("i").style.width = `${(100 * share).toFixed(1)}%`;
      row.lastChild.textContent = `${(100 * share).toFixed(1)} %`;
      return row;
    }));
    busy = false;
    if (again) { again = false; await answer(); }
  };

  const place = (event) => {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) * pad.width / box.width, (event.clientY - box.top) * pad.height / box.height];
  };
  pad.addEventListener("pointerdown", (event) => {
    down = true;
    pad.setPointerCapture(event.pointerId);
    ink.beginPath();
    ink.moveTo(...place(event));
  });
  pad.addEventListener("pointermove", (event) => {
    if (!down) return;
    Object.assign(ink, { strokeStyle: "#fff", lineWidth: 30, lineCap: "round", lineJoin: "round" });
    ink.lineTo(...place(event));
    ink.stroke();
    answer();
  });
  pad.addEventListener("pointerup", () => { down = false; });
  at("clear").addEventListener("click", clear);
  clear();
}

const test = await selfTest();
at("test").className = test.ok ? "ok" : "bad";
at("test").textContent = test.ok
  ? `Self-test passed: ${test.samples} golden vectors, largest difference ${Math.max(...Object.values(test.worst)).toPrecision(2)}`
  : `Self-test failed: output ${test.drift.output} of sample ${test.drift.sample} is off by ${test.drift.difference.toPrecision(3)}, over ${test.drift.tolerance.toPrecision(3)}`;
