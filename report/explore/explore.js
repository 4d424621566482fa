"use strict";
// The networks first, with the names that the scripts have; then one function for each panel.

if (typeof PAGE === "undefined") {
  document.getElementById("warning").style.display = "block";
  document.getElementById("warning").textContent = "weights.js is missing: python report/explore/export.py writes it.";
}

// ---- Numbers of weights.js --------------------------------------------------------------------------------------------

function unpack({kind, data, scale}) {
  const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
  if (kind === "u8") return Float32Array.from(bytes, value => value / 255);
  if (kind === "i8") {  // each 16 numbers have one scale
    const scales = unpack(scale);
    return Float32Array.from(new Int8Array(bytes.buffer), (value, i) => value * scales[i >> 4]);
  }
  return Float32Array.from(new Uint16Array(bytes.buffer), half);
}

function half(h) {  // float16 -> number
  const sign = h & 0x8000 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -14 * (fraction / 1024);
}

// ---- Layers: x is a flat array, shape is [channels, height, width] or [numbers] -----------------------------------------

function combine(matrix, x, n) {  // the sum of the matrix's rows, of n numbers each, times the numbers in x
  const y = new Float32Array(n), used = new Uint16Array(x.length + 1);
  let count = 0;
  for (let j = 0; j < x.length; j++) if (x[j]) used[count++] = j;  // after a ReLU, most are 0
  for (let k = 0; k < count; k += 2) {  // two rows at a time: twice as fast as one
    const v = x[used[k]], w = k + 1 < count ? x[used[k + 1]] : 0, from = n * used[k], next = n * used[k + 1];
    for (let i = 0; i < n; i++) y[i] += matrix[from + i] * v + matrix[next + i] * w;
  }
  return y;
}

function patch([channels, height, width], row, column, size, visit) {  // visit(place in the patch, place in the image)
  for (let c = 0, i = 0; c < channels; c++)
    for (let r = row; r < row + size; r++)
      for (let s = column; s < column + size; s++, i++)
        if (r >= 0 && r < height && s >= 0 && s < width) visit(i, (c * height + r) * width + s);
}

const LAYERS = {
  Linear(x, shape, {weight, bias}) {
    const y = new Float32Array(bias.length), n = x.length;
    for (let i = 0; i < y.length; i++) {
      let sum = bias[i];
      for (let j = 0, at = i * n; j < n; j++) sum += weight[at + j] * x[j];
      y[i] = sum;
    }
    return [y, [y.length]];
  },
  Conv2d(x, shape, {weight, size, bias, padding}) {  // each place reads a patch; weight: a row for each of its numbers
    const [h, w] = shape.slice(1).map(n => n + 2 * padding - size + 1), y = new Float32Array(bias.length * h * w);
    for (let r = 0; r < h; r++) for (let s = 0; s < w; s++) {
      const read = new Float32Array(shape[0] * size * size);
      patch(shape, r - padding, s - padding, size, (i, from) => { read[i] = x[from]; });
      combine(weight, read, bias.length).forEach((value, o) => { y[(o * h + r) * w + s] = value + bias[o]; });
    }
    return [y, [bias.length, h, w]];
  },
  ConvTranspose2d(x, [channels, height, width], {weight, size, bias, stride, padding}) {  // each place writes a patch
    const shape = [bias.length, ...[height, width].map(n => (n - 1) * stride - 2 * padding + size)];
    const y = new Float32Array(shape[0] * shape[1] * shape[2]);
    for (let o = 0, n = shape[1] * shape[2]; o < shape[0]; o++) y.fill(bias[o], o * n, (o + 1) * n);
    for (let r = 0; r < height; r++) for (let s = 0; s < width; s++) {
      const here = Float32Array.from({length: channels}, (_, c) => x[(c * height + r) * width + s]);
      const written = combine(weight, here, shape[0] * size * size);
      patch(shape, r * stride - padding, s * stride - padding, size, (i, to) => { y[to] += written[i]; });
    }
    return [y, shape];
  },
  MaxPool2d(x, [channels, height, width]) {  // of 2 x 2, the last row and column included where they are alone
    const h = Math.ceil(height / 2), w = Math.ceil(width / 2), y = new Float32Array(channels * h * w).fill(-Infinity);
    for (let i = 0; i < x.length; i++) {
      const column = i % width, row = Math.floor(i / width) % height, c = Math.floor(i / (width * height));
      const at = (c * h + (row >> 1)) * w + (column >> 1);
      y[at] = Math.max(y[at], x[i]);
    }
    return [y, [channels, h, w]];
  },
  ResidualStack(x, shape, {layers}) {  // x + layer(relu(x)), and a ReLU at the end
    for (const inner of layers) {
      const change = run(inner, x.map(v => Math.max(v, 0)), shape);
      x = x.map((value, i) => value + change[i]);
    }
    return [x.map(v => Math.max(v, 0)), shape];
  },
  LeakyReLU: (x, shape, {slope}) => [x.map(v => v > 0 ? v : slope * v), shape],
  ReLU: (x, shape) => [x.map(v => Math.max(v, 0)), shape],
  SiLU: (x, shape) => [x.map(v => v / (1 + Math.exp(-v))), shape],
  Sigmoid: (x, shape) => [x.map(v => 1 / (1 + Math.exp(-v))), shape],
};

function run(layers, x, shape) {
  for (const layer of layers) [x, shape] = LAYERS[layer.kind](x, shape, layer);
  return x;
}

function prepare(layers) {
  return layers.map(layer => ({
    ...layer, ...(layer.weight && {weight: unpack(layer.weight), bias: unpack(layer.bias)}),
    ...(layer.layers && {layers: layer.layers.map(prepare)})}));
}

const forward = {};  // {name: function from the network's input to its output}
let worst = 0;
for (const [name, {layers, shape, input, output}] of Object.entries(PAGE.networks)) {
  const ready = prepare(layers);
  forward[name] = x => run(ready, x, shape);
  const expected = unpack(output), got = forward[name](unpack(input));
  const difference = Math.max(...expected.map((value, i) => Math.abs(value - got[i])));
  worst = got.length === expected.length && !Number.isNaN(difference) ? Math.max(worst, difference) : Infinity;
}
document.documentElement.dataset.difference = worst;
document.documentElement.dataset.check = worst < 0.02 ? "ok" : String(worst);
if (worst >= 0.02) {
  const warning = document.getElementById("warning");
  warning.style.display = "block";
  warning.textContent = `The networks of this page differ from those of the scripts by up to ${worst} in a pixel.`;
}

// ---- Helpers ------------------------------------------------------------------------------------------------------------

const COLORS = ["#cc79a7", "#e69f00", "#999999", "#d55e00", "#0072b2", "#56b4e9", "#8c510a", "#009e73", "#000000", "#e0cc00"];
const digits = unpack(PAGE.digits), digit = i => digits.slice(784 * i, 784 * (i + 1));
const names = PAGE.labels.map((y, i) => `${y}, the ${i % 2 ? "second" : "first"}`);
const sum = values => values.reduce((a, b) => a + b, 0);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function normal() {  // Box and Muller
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

const normals = n => Float32Array.from({length: n}, normal);

function element(parent, tag, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

function picture(parent, caption, size, label = caption) {  // a canvas with a caption; returns the canvas
  const figure = element(parent, "figure", {style: `width: ${size}px`});
  const canvas = element(figure, "canvas", {width: 28, height: 28, role: "img", "aria-label": label});
  if (caption) element(figure, "figcaption", {}, caption);
  return canvas;
}

function draw(canvas, x) {  // x: 784 grey values, or 3 x 32 x 32
  const size = x.length === 784 ? 28 : 32, n = size * size, colored = x.length > n;
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d"), image = context.createImageData(size, size);
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = 255 * clamp(x[colored ? c * n + i : i], 0, 1);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function slider(parent, label, {min, max, step, value}, changed, digits = 2) {
  const holder = element(parent, "label", {}, `${label} `);
  const input = element(holder, "input", {type: "range", min, max, step, value}), shown = element(holder, "output");
  const show = () => { shown.textContent = Number(input.value).toFixed(digits); };
  input.addEventListener("input", () => { show(); changed(Number(input.value)); });
  show();
  return number => { input.value = number; show(); };
}

function button(parent, text, pressed) {
  element(parent, "button", {type: "button"}, text).addEventListener("click", pressed);
}

function strip(parent, images, labels, chosen) {  // buttons with a picture each, one of them pressed; returns select(i)
  const buttons = images.map((x, i) => {
    const made = element(parent, "button", {type: "button", "aria-label": labels[i], tabindex: i ? -1 : 0});
    const canvas = element(made, "canvas", {"aria-hidden": "true"});
    canvas.style.width = canvas.style.height = x.length === 784 ? "36px" : "56px";
    draw(canvas, x);
    made.addEventListener("click", () => { select(i); chosen(i); });
    made.addEventListener("keydown", event => {  // Tab leads to the strip, and arrow keys lead through it
      const next = buttons[i + ({ArrowLeft: -1, ArrowRight: 1}[event.key] || NaN)];
      if (next) [made.tabIndex, next.tabIndex] = [-1, 0];
      if (next) next.focus();
    });
    return made;
  });
  const select = i => parent.closest("section").querySelectorAll(".strip button").forEach(other =>
    other.setAttribute("aria-pressed", other === buttons[i]));
  select(-1);
  return select;
}

const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0]};

function listen(canvas, place, step) {  // dragging calls place(u, v), each from 0 to 1; an arrow key, step(right, down)
  canvas.tabIndex = 0;
  canvas.className = "drag";
  canvas.setAttribute("role", "application");
  for (const kind of ["pointerdown", "pointermove"]) canvas.addEventListener(kind, event => {
    if (event.buttons !== 1) return;
    if (kind === "pointerdown") canvas.setPointerCapture(event.pointerId);
    const box = canvas.getBoundingClientRect();
    place(clamp((event.clientX - box.left) / box.width, 0, 1), clamp((event.clientY - box.top) / box.height, 0, 1), kind);
  });
  canvas.addEventListener("keydown", event => {
    if (!STEPS[event.key]) return;
    event.preventDefault();
    step(...STEPS[event.key], event.key);
  });
}

function pointer(canvas, moved) {  // moved(u, v); returns set(u, v), which only notes where the point is
  let u = 0.5, v = 0.5;
  const go = (x, y) => { [u, v] = [clamp(x, 0, 1), clamp(y, 0, 1)]; moved(u, v); };
  listen(canvas, go, (right, down) => go(u + 0.02 * right, v + 0.02 * down));
  return (x, y) => { [u, v] = [x, y]; };
}

function sketch(parent, label, changed, given = () => true) {  // a 28 x 28 canvas to draw on
  const canvas = picture(parent, "draw here (arrow keys move, space draws)", 168, `${label}. Arrow keys move, space draws`);
  const x = new Float32Array(784);
  let [column, row] = [10, 18];
  const dab = () => {
    for (let r = 0; r < 28; r++) for (let c = 0; c < 28; c++)
      x[28 * r + c] = Math.max(x[28 * r + c], clamp(1.9 - Math.hypot(r - row, c - column), 0, 1));
  };
  const paint = () => {
    draw(canvas, x.map((value, i) => given(i) ? value : 0.4));  // grey is not given
    if (document.activeElement !== canvas) return;
    canvas.getContext("2d").fillStyle = "#e69f00";
    canvas.getContext("2d").fillRect(Math.round(column), Math.round(row), 1, 1);
  };
  const show = () => { paint(); changed(x); };
  listen(canvas, (u, v, kind) => {
    const [right, down] = [28 * u - 0.5 - column, 28 * v - 0.5 - row], n = kind === "pointerdown" ? 1 : Math.ceil(2 * Math.hypot(right, down));
    const [fromColumn, fromRow] = [column, row];
    for (let i = 1; i <= n; i++) {  // a line from the last place: a fast pointer leaves no gaps
      [column, row] = [fromColumn + right * i / n, fromRow + down * i / n];
      dab();
    }
    show();
  }, (right, down, key) => {
    const [c, r] = [clamp(Math.round(column) + right, 0, 27), clamp(Math.round(row) + down, 0, 27)];
    if (given(28 * r + c)) [column, row] = [c, r];
    if (key === " ") dab();
    show();
  });
  canvas.addEventListener("focus", paint);
  canvas.addEventListener("blur", paint);
  paint();
  return {set: image => { x.set(image); paint(); }, x};
}

const part = (id, kind, i = 0) => document.getElementById(id).querySelectorAll(kind)[i];

// ---- 1. Two planes --------------------------------------------------------------------------------------------------------

{
  const row = part("planes", ".row"), legend = element(row, "div", {class: "legend"});
  COLORS.forEach((color, y) => { element(element(legend, "span", {}, `${y} `), "b", {style: `color: ${color}`}, "●"); });
  const planes = [["ae", "autoencoder"], ["plane", "variational autoencoder"]].map(([name, title]) => {
    const {codes, extent: [left, right, bottom, top]} = PAGE[name], pair = element(row, "div", {class: "pair"});
    const canvas = picture(pair, `${title}: drag the point`, 330, `the plane of the ${title}. Arrow keys move the point`);
    const set = pointer(canvas, move);
    canvas.classList.add("plane");
    return {name, canvas, set, image: picture(pair, "z", 112, "decoded"), points: unpack(codes), left, right, bottom, top};
  });
  function move(u, v) {
    for (const {name, canvas, set, image, points, left, right, bottom, top} of planes) {
      set(u, v);
      canvas.width = canvas.height = 660;
      const context = canvas.getContext("2d"), at = (x, y) => [660 * (x - left) / (right - left), 660 * (top - y) / (top - bottom)];
      for (let i = 0; i < points.length; i += 2) {
        const [x, y] = at(points[i], points[i + 1]);
        context.fillStyle = COLORS[PAGE.plane_labels[i / 2]];
        context.globalAlpha = 0.55;
        context.fillRect(x - 3, y - 3, 6, 6);
      }
      context.globalAlpha = 1;
      [context.strokeStyle, context.lineWidth] = ["#555", 2];
      if (name === "plane") for (const radius of [1, 2, 3]) {
        context.beginPath();
        context.arc(...at(0, 0), 660 * radius / (right - left), 0, 2 * Math.PI);
        context.stroke();
      }
      [context.strokeStyle, context.lineWidth] = ["#000", 4];
      context.strokeRect(660 * u - 9, 660 * v - 9, 18, 18);
      const z = [left + u * (right - left), top - v * (top - bottom)];
      draw(image, forward[name](Float32Array.from(z)));
      image.nextSibling.textContent = `z = (${z.map(value => value.toFixed(1)).join(", ")})`;
    }
  }
  move(0.525, 0.625);
}

// ---- 2. Noise -------------------------------------------------------------------------------------------------------------

{
  const row = part("noise", ".row"), epsilon = normals(784);
  let level = 0.5;
  const own = sketch(row, "the clean image, to draw on", () => { select(-1); update(); });
  const noisy = picture(row, "noisy", 168), filtered = picture(row, "Gaussian filter, fitted at 0.5", 168);
  const denoised = picture(row, "denoised", 168), controls = element(row, "div");
  const select = strip(part("noise", ".strip"), [...PAGE.labels.keys()].map(digit), names,
                       i => { own.set(digit(i)); update(); });
  slider(controls, "noise", {min: 0, max: 1, step: 0.05, value: level}, value => { level = value; update(); });
  button(controls, "new noise", () => { epsilon.set(normals(784)); update(); });
  button(controls, "blank", () => { own.set(new Float32Array(784)); select(-1); update(); });
  function update() {
    const x = own.x.map((value, i) => clamp(value + level * epsilon[i], 0, 1));
    draw(noisy, x);
    draw(filtered, blur(x).map(value => PAGE.filter.a * value + PAGE.filter.b));
    draw(denoised, forward.denoise_ae(x));
  }
  function blur(x) {  // 11 x 11, mirrored at the edges
    const kernel = Array.from({length: 11}, (_, i) => Math.exp(-0.5 * ((i - 5) / PAGE.filter.sigma) ** 2)), total = sum(kernel);
    const mirror = i => i < 0 ? -i : i > 27 ? 54 - i : i;
    const along = (x, at) => x.map((_, i) => {
      const r = Math.floor(i / 28), c = i % 28;
      return sum(kernel.map((weight, k) => weight / total * x[at(r, c, k - 5)]));
    });
    return along(along(x, (r, c, k) => 28 * r + mirror(c + k)), (r, c, k) => 28 * mirror(r + k) + c);
  }
  select(4);
  own.set(digit(4));
  update();
}

// ---- 3. Sample ------------------------------------------------------------------------------------------------------------

{
  const row = part("sample", ".row"), mus = unpack(PAGE.vae.mu), logvars = unpack(PAGE.vae.logvar), kl = unpack(PAGE.vae.kl);
  const size = kl.length, used = [...kl.keys()].filter(i => kl[i] > 0.05).sort((a, b) => kl[b] - kl[a]);
  const original = picture(row, "test digit", 112), changed = picture(row, "decoded from your code", 112);
  const controls = element(row, "div"), many = element(row, "div", {class: "strip six"});
  const samples = Array.from({length: 12}, () => picture(many, "", 64, "a sample"));
  element(many, "div", {class: "soft"}, "twelve draws from the cloud");
  let chosen = 14, z = new Float32Array(size), factor = 1;
  const select = strip(part("sample", ".strip"), [...PAGE.labels.keys()].map(digit), names, choose);
  slider(controls, "variance ×", {min: 1, max: 20, step: 0.5, value: 1}, value => { factor = value; sample(); }, 1);
  button(controls, "again", sample);
  const setters = used.map(i => slider(part("sample", ".sliders"), `z${i + 1} (KL ${kl[i].toFixed(2)})`,
                                       {min: -3, max: 3, step: 0.05, value: 0}, value => { z[i] = value; show(); }));
  const sigma = element(controls, "p", {class: "soft"});
  const show = () => draw(changed, forward.vae(z));
  function sample() {
    sigma.textContent = "sigma: " + used.slice(0, 6).map(i =>
      `${(Math.sqrt(factor) * Math.exp(0.5 * logvars[size * chosen + i])).toFixed(2)} of z${i + 1}`).join(", ") + " …";
    for (const canvas of samples) {
      const mu = mus.slice(size * chosen, size * (chosen + 1));
      draw(canvas, forward.vae(mu.map((m, i) => m + Math.exp(0.5 * logvars[size * chosen + i]) * Math.sqrt(factor) * normal())));
    }
  }
  function choose(i) {
    chosen = i;
    z = mus.slice(size * i, size * (i + 1));
    used.forEach((dimension, k) => setters[k](z[dimension]));
    draw(original, digit(i));
    show();
    sample();
  }
  select(14);
  choose(14);
}

// ---- 4. Ask for a digit -----------------------------------------------------------------------------------------------------

{
  const row = part("ask", ".row"), kl = unpack(PAGE.cvae.kl), [first, second] = [...kl.keys()].sort((a, b) => kl[b] - kl[a]);
  const left = element(row, "div"), pad = picture(left, `z${first + 1} across, z${second + 1} up: drag`, 168,
                                                  "two numbers of the code. Arrow keys move the point");
  const images = element(row, "div", {class: "strip five"});
  const all = Array.from({length: 10}, (_, y) => picture(images, String(y), 84, `the digit ${y}`));
  let z = normals(kl.length);
  button(left, "another handwriting", () => { z = normals(kl.length); show(); });
  const set = pointer(pad, (u, v) => { z[first] = 6 * u - 3; z[second] = 3 - 6 * v; show(); });
  function show() {
    pad.width = pad.height = 336;
    const context = pad.getContext("2d"), x = 56 * (z[first] + 3), y = 56 * (3 - z[second]);
    context.strokeStyle = "#888";
    context.strokeRect(168, 0, 0, 336);
    context.strokeRect(0, 168, 336, 0);
    context.fillStyle = "#e69f00";
    context.fillRect(x - 8, y - 8, 16, 16);
    set(x / 336, y / 336);
    all.forEach((canvas, y) => draw(canvas, forward.cvae(Float32Array.from({length: z.length + 10}, (_, i) =>
      i < z.length ? z[i] : Number(i - z.length === y)))));
  }
  show();
}

// ---- 5. Complete it -----------------------------------------------------------------------------------------------------------

{
  const row = part("complete", ".row"), size = PAGE.networks.cvae_structured.input.shape[1] - 196;
  const given = i => Math.floor(i / 28) >= 14 && i % 28 < 14, visible = [...Array(784).keys()].filter(given);
  const own = sketch(row, "the visible quarter, to draw on", () => { select(-1); update(); }, given);
  const one = picture(row, "BaselineNN", 112), controls = element(row, "div"), many = element(row, "div", {class: "strip five"});
  const samples = Array.from({length: 10}, () => picture(many, "", 84, "a completion"));
  element(many, "div", {class: "soft"}, "CVAE: ten answers");
  const select = strip(part("complete", ".strip"), [...PAGE.labels.keys()].map(digit), names,
                       i => give(digit(i)));
  button(controls, "again", () => update());
  button(controls, "clear", () => { give(new Float32Array(784)); select(-1); });
  function give(x) {
    own.set(x);
    update();
  }
  function update() {
    const c = Float32Array.from(visible, i => own.x[i]);
    const answer = x => { visible.forEach((i, k) => { x[i] = c[k]; }); return x; };  // what is known is shown as it is
    draw(one, answer(forward.baseline(c)));
    for (const canvas of samples) draw(canvas, answer(forward.cvae_structured(Float32Array.of(...normals(size), ...c))));
  }
  select(9);
  give(digit(9));
}

// ---- 6. Sixty-four words ------------------------------------------------------------------------------------------------------

{
  const row = part("words", ".row"), {photographs, index, written, colors, codebook} = PAGE.vqvae, codes = unpack(codebook);
  const hues = unpack(colors), k = hues.length / 3, d = codes.length / k, color = code => [0, 1, 2].map(c => hues[3 * code + c]);
  const across = window.innerWidth < 500 ? 16 : 32, down = Math.ceil(k / across), order = [...Array(k).keys()], by = f => (a, b) => f(a) - f(b);
  const hue = ([r, g, b]) => Math.atan2(Math.sqrt(3) * (g - b), 2 * r - g - b);
  order.sort(by(code => sum(color(code))));  // the palette: dark words in the upper rows, and each row by its hues
  for (let i = 0; i < k; i += across) order.splice(i, across, ...order.slice(i, i + across).sort(by(code => hue(color(code)))));
  const decode = words => forward.vqvae(Float32Array.from({length: 64 * d}, (_, i) =>
    codes[d * words[i % 64] + Math.floor(i / 64)])).map(value => value + 0.5);
  const pixels = unpack(photographs), photograph = i => pixels.slice(3072 * i, 3072 * (i + 1));
  const canvas = picture(row, "choose a cell", 288, "the picture, 8 by 8 cells. Arrow keys choose a cell, Enter leads to the palette");
  const palette = picture(row, `the ${k} words, by brightness and hue: orange is in the cell, white is aimed at`, 320,
                          "the palette of words. Arrow keys choose a word, Enter puts it into the cell");
  const photo = picture(row, "the photograph", 112), original = picture(row, "before your changes", 112), controls = element(row, "div");
  let words = [], before = [], cell = 27, aimed = 0;
  const choose = list => i => {
    before = list[i];
    words = [...before];
    photo.parentNode.style.display = list === index ? "" : "none";  // the prior has no photograph
    if (list === index) draw(photo, photograph(i));
    draw(original, decode(before));
    aim(cell);
    show();
  };
  const aim = place => { cell = place; aimed = order.indexOf(words[cell]); };
  const select = strip(part("words", ".strip"), index.map((_, i) => photograph(i)), index.map((_, i) => `photograph ${i + 1}`),
                       choose(index));
  strip(part("words", ".strip", 1), written.map(decode), written.map((_, i) => `written image ${i + 1}`), choose(written));
  const numbers = element(element(controls, "label", {}, "show the words' numbers "), "input", {type: "checkbox"});
  numbers.addEventListener("change", () => show());
  button(controls, "undo all", () => { words = [...before]; show(); });
  const text = element(controls, "p", {class: "soft", "aria-live": "polite"});

  function show() {
    const small = document.createElement("canvas"), context = canvas.getContext("2d");
    draw(small, decode(words));
    canvas.width = canvas.height = 576;
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, 576, 576);
    [context.font, context.textAlign, context.fillStyle] = ["24px sans-serif", "center", "#fff"];
    [context.strokeStyle, context.lineWidth, context.lineJoin] = ["#000", 5, "round"];
    if (numbers.checked) words.forEach((word, i) => {
      const place = [72 * (i % 8) + 36, 72 * Math.floor(i / 8) + 45];
      context.strokeText(word, ...place);
      context.fillText(word, ...place);
    });
    [context.strokeStyle, context.lineWidth] = ["#e69f00", 4];
    context.strokeRect(72 * (cell % 8) + 2, 72 * Math.floor(cell / 8) + 2, 68, 68);
    const paint = palette.getContext("2d");
    palette.width = 640;
    palette.height = 20 * down;
    order.forEach((code, i) => {
      paint.fillStyle = `rgb(${color(code).map(c => 255 * c)})`;
      paint.fillRect(20 * (i % across), 20 * Math.floor(i / across), 20, 20);
    });
    for (const [i, style] of [[aimed, "#fff"], [order.indexOf(words[cell]), "#e69f00"]])
      for (const [ink, width] of [["#000", 6], [style, 3]]) {
        [paint.strokeStyle, paint.lineWidth] = [ink, width];
        paint.strokeRect(20 * (i % across) + 2, 20 * Math.floor(i / across) + 2, 16, 16);
      }
    text.textContent = `row ${Math.floor(cell / 8) + 1}, column ${cell % 8 + 1}: word ${words[cell]}`;
  }
  const put = () => { words[cell] = order[aimed]; show(); };
  const keys = (target, columns, n, get, set, enter) => target.addEventListener("keydown", event => {
    const [right, down] = STEPS[event.key] || [0, 0], next = get() + right + columns * down;
    if (event.key === "Enter") enter();
    else if (!right && !down) return;
    else if (next >= 0 && next < n) set(next);
    event.preventDefault();
    show();
  });
  const place = (target, event, columns, rows) => {
    const box = target.getBoundingClientRect();
    return clamp(Math.floor(rows * (event.clientY - box.top) / box.height), 0, rows - 1) * columns
      + clamp(Math.floor(columns * (event.clientX - box.left) / box.width), 0, columns - 1);
  };
  canvas.tabIndex = palette.tabIndex = 0;
  for (const target of [canvas, palette]) target.setAttribute("role", "application");
  canvas.addEventListener("click", event => { aim(place(canvas, event, 8, 8)); show(); });
  palette.addEventListener("click", event => { aimed = Math.min(place(palette, event, across, down), k - 1); put(); });
  keys(canvas, 8, 64, () => cell, aim, () => palette.focus());
  keys(palette, across, k, () => aimed, value => { aimed = value; }, put);
  select(0);
  choose(index)(0);
}
