"use strict";
// What all panels share: the networks' layers, the controls, and the loader. A panel is a file in panels/, its networks
// are files in weights/, and both are loaded when a reader comes near the panel's place in the text.

const Panels = {};
{

// ---- Numbers of weights/*.js ----------------------------------------------------------------------------------------

// Plain loops: `Float32Array.from(array, function)` takes five times as long, for a million numbers half a second.
function unpack({kind, data, scale}) {
  const text = atob(data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  if (kind === "f16") return halves(new Uint16Array(bytes.buffer));
  if (kind === "i12") return twelves(bytes, unpack(scale));
  const numbers = new Float32Array(bytes.length);  // u8
  for (let i = 0; i < numbers.length; i++) numbers[i] = bytes[i] / 255;
  return numbers;
}

function twelves(bytes, scales) {  // two numbers in three bytes; each row has one scale
  const numbers = new Float32Array(bytes.length / 3 * 2), n = numbers.length / scales.length;
  for (let i = 0, at = 0; i < numbers.length; i += 2, at += 3) {
    const middle = bytes[at + 1];
    numbers[i] = (bytes[at] | (middle & 15) << 8) - 2048;
    numbers[i + 1] = (middle >> 4 | bytes[at + 2] << 4) - 2048;
  }
  for (let row = 0; row < scales.length; row++)
    for (let i = row * n; i < (row + 1) * n; i++) numbers[i] *= scales[row];
  return numbers;
}

function halves(from) {  // float16 -> float32, by moving the bits
  const bits = new Uint32Array(from.length), numbers = new Float32Array(bits.buffer);
  for (let i = 0; i < from.length; i++) {
    const h = from[i], sign = (h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent) bits[i] = sign | (exponent + 112) << 23 | fraction << 13;
    else numbers[i] = (sign ? -1 : 1) * fraction / 2 ** 24;
  }
  return numbers;
}

// What a weights file holds, made ready: lists of layers become functions, packed numbers become arrays.
function ready(value) {
  if (value === null || typeof value !== "object") return value;
  if (value.data) return unpack(value);
  if (value.layers && value.shape) {
    const layers = ready(value.layers);
    return x => run(layers, x, value.shape);
  }
  if (Array.isArray(value)) return value.map(ready);
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, ready(inner)]));
}

// ---- Layers, with PyTorch's names, parameters and order of weights --------------------------------------------------
// x is a flat array, shape is [channels, height, width] or [..., numbers]; each returns [y, the shape of y].

function dot(a, from, b, at, n) {  // four sums at a time: one alone would wait for each addition
  let p = 0, q = 0, r = 0, s = 0, j = 0;
  for (; j + 3 < n; j += 4) {
    p += a[from + j] * b[at + j];
    q += a[from + j + 1] * b[at + j + 1];
    r += a[from + j + 2] * b[at + j + 2];
    s += a[from + j + 3] * b[at + j + 3];
  }
  for (; j < n; j++) p += a[from + j] * b[at + j];
  return p + q + r + s;
}

// The places in the image that a size x size patch covers, in the order of a layer's weights; -1 is outside.
function patch([channels, height, width], row, column, size, places) {
  for (let c = 0, i = 0; c < channels; c++)
    for (let r = row; r < row + size; r++)
      for (let s = column; s < column + size; s++, i++)
        places[i] = r >= 0 && r < height && s >= 0 && s < width ? (c * height + r) * width + s : -1;
}

function each(x, f) {  // a function of one number, for all numbers
  const y = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) y[i] = f(x[i]);
  return y;
}

function erf(x) {  // Abramowitz and Stegun 7.1.26, right to 1.5e-7
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const sum = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(x) * (1 - sum * Math.exp(-x * x));
}

const layers = {
  Linear(x, shape, {weight, bias}) {  // each row of n numbers -> as many as the weights have rows
    const n = shape[shape.length - 1], outputs = weight.length / n, rows = x.length / n;
    const y = new Float32Array(rows * outputs);
    for (let row = 0; row < rows; row++)
      for (let i = 0; i < outputs; i++)
        y[row * outputs + i] = (bias ? bias[i] : 0) + dot(weight, i * n, x, row * n, n);
    return [y, [...shape.slice(0, -1), outputs]];
  },
  Conv2d(x, shape, {weight, bias, size, stride, padding}) {  // each place reads a patch
    const [height, width] = shape.slice(1).map(n => Math.floor((n + 2 * padding - size) / stride) + 1);
    const n = shape[0] * size * size, channels = weight.length / n, y = new Float32Array(channels * height * width);
    const places = new Int32Array(n), read = new Float32Array(n);
    for (let r = 0; r < height; r++) for (let s = 0; s < width; s++) {
      patch(shape, r * stride - padding, s * stride - padding, size, places);
      for (let i = 0; i < n; i++) read[i] = places[i] < 0 ? 0 : x[places[i]];
      for (let o = 0; o < channels; o++)
        y[(o * height + r) * width + s] = (bias ? bias[o] : 0) + dot(weight, o * n, read, 0, n);
    }
    return [y, [channels, height, width]];
  },
  ConvTranspose2d(x, [channels, height, width], {weight, bias, size, stride, padding}) {  // each place writes a patch
    const n = weight.length / channels;
    const shape = [n / size ** 2, ...[height, width].map(m => (m - 1) * stride - 2 * padding + size)];
    const area = shape[1] * shape[2], y = new Float32Array(shape[0] * area);
    if (bias) for (let o = 0; o < shape[0]; o++) y.fill(bias[o], o * area, (o + 1) * area);
    const places = new Int32Array(n), written = new Float32Array(n);
    for (let r = 0; r < height; r++) for (let s = 0; s < width; s++) {
      written.fill(0);
      for (let c = 0; c < channels; c++) {
        const value = x[(c * height + r) * width + s];
        if (value) for (let i = 0, at = c * n; i < n; i++) written[i] += value * weight[at + i];
      }
      patch(shape, r * stride - padding, s * stride - padding, size, places);
      for (let i = 0; i < n; i++) if (places[i] >= 0) y[places[i]] += written[i];
    }
    return [y, shape];
  },
  BatchNorm2d(x, shape, {weight, bias, running_mean, running_var, eps}) {
    const y = new Float32Array(x.length), area = shape[1] * shape[2];
    for (let c = 0; c < shape[0]; c++) {
      const scale = weight[c] / Math.sqrt(running_var[c] + eps), shift = bias[c] - running_mean[c] * scale;
      for (let i = c * area; i < (c + 1) * area; i++) y[i] = x[i] * scale + shift;
    }
    return [y, shape];
  },
  MaxPool2d(x, [channels, height, width]) {  // of 2 x 2, the last row and column included where they are alone
    const h = Math.ceil(height / 2), w = Math.ceil(width / 2), y = new Float32Array(channels * h * w).fill(-Infinity);
    for (let c = 0, i = 0; c < channels; c++)
      for (let r = 0; r < height; r++)
        for (let s = 0; s < width; s++, i++) {
          const at = (c * h + (r >> 1)) * w + (s >> 1);
          if (x[i] > y[at]) y[at] = x[i];
        }
    return [y, [channels, h, w]];
  },
  ResidualStack(x, shape, {blocks}) {  // x + block(relu(x)) for each block, and a ReLU at the end
    for (const block of blocks) {
      const change = run(block, each(x, relu), shape);
      x = x.map((value, i) => value + change[i]);
    }
    return [each(x, relu), shape];
  },
  LayerNorm(x, shape, {weight, bias, eps}) {  // of each row
    const n = weight.length, y = new Float32Array(x.length);
    for (let from = 0; from < x.length; from += n) {
      let mean = 0, variance = 0;
      for (let i = 0; i < n; i++) mean += x[from + i] / n;
      for (let i = 0; i < n; i++) variance += (x[from + i] - mean) ** 2 / n;
      for (let i = 0; i < n; i++) y[from + i] = (x[from + i] - mean) / Math.sqrt(variance + eps) * weight[i] + bias[i];
    }
    return [y, shape];
  },
  // Causal self-attention over the rows of x, [t, width], and over the rows before them, which `past` remembers: a
  // sequence can be given row by row, or as a whole.
  MultiheadAttention(x, [t, width], {heads, inwards, outwards}, past = {keys: [], values: []}) {
    const [projected] = layers.Linear(x, [t, width], inwards), size = width / heads, y = new Float32Array(x.length);
    for (let row = 0; row < t; row++) {
      const at = 3 * width * row;
      past.keys.push(projected.slice(at + width, at + 2 * width));
      past.values.push(projected.slice(at + 2 * width, at + 3 * width));
      for (let head = 0; head < heads; head++) {
        const from = head * size;
        const scores = softmax(past.keys.map(key => dot(projected, at + from, key, from, size) / Math.sqrt(size)));
        scores.forEach((score, k) => {
          for (let i = from; i < from + size; i++) y[row * width + i] += score * past.values[k][i];
        });
      }
    }
    return layers.Linear(y, [t, width], outwards);
  },
  TransformerEncoderLayer(x, shape, {norm1, self_attn, norm2, linear1, linear2}, past) {  // norm_first=True
    const [attended] = layers.MultiheadAttention(layers.LayerNorm(x, shape, norm1)[0], shape, self_attn, past);
    const h = x.map((value, i) => value + attended[i]);
    const [hidden, wide] = layers.Linear(layers.LayerNorm(h, shape, norm2)[0], shape, linear1);
    const [change] = layers.Linear(layers.GELU(hidden)[0], wide, linear2);
    return [h.map((value, i) => value + change[i]), shape];
  },
  LeakyReLU: (x, shape, {negative_slope}) => [each(x, v => v > 0 ? v : negative_slope * v), shape],
  ReLU: (x, shape) => [each(x, relu), shape],
  SiLU: (x, shape) => [each(x, v => v / (1 + Math.exp(-v))), shape],
  GELU: (x, shape) => [each(x, v => 0.5 * v * (1 + erf(v / Math.SQRT2))), shape],
  Sigmoid: (x, shape) => [each(x, v => 1 / (1 + Math.exp(-v))), shape],
};

function relu(v) { return v > 0 ? v : 0; }

function softmax(scores) {
  const top = Math.max(...scores), raised = scores.map(score => Math.exp(score - top)), total = sum(raised);
  return raised.map(value => value / total);
}

function run(list, x, shape) {
  for (const layer of list) [x, shape] = layers[layer.kind](x, shape, layer);
  return x;
}

// q(z|x): {mu, sigma} of a VAE's encoder, as myVAE.encode has it.
function encode({encoder, mu_layer, logvar_layer}, x) {
  const h = encoder(x);
  return {mu: mu_layer(h), sigma: each(logvar_layer(h), v => Math.exp(0.5 * Math.min(v, 10)))};
}

// ---- Numbers --------------------------------------------------------------------------------------------------------

const sum = values => values.reduce((a, b) => a + b, 0);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function random(seed) {  // returns a function: the next number from 0 to 1, the same ones for a seed (mulberry32)
  return () => {
    seed = seed + 0x6D2B79F5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, seed | 1);
    t ^= t + Math.imul(t ^ t >>> 7, t | 61);
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
}

function normals(n, seed) {  // n draws from N(0, 1), the same ones for a seed (Box and Muller)
  const uniform = random(seed), numbers = new Float32Array(n);
  for (let i = 0; i < n; i++)
    numbers[i] = Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return numbers;
}

function fixed(value, digits = 2) {  // as toFixed, but never "-0.00"
  const text = value.toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : text.replace("-", "−");
}

// ---- When to compute ------------------------------------------------------------------------------------------------

// Returns a function that calls f in the next frame, once, with the latest of its arguments, however often it is called
// before: a pointer reports more places than a screen shows.
function soon(f) {
  let latest = null;
  return (...values) => {
    if (!latest) requestAnimationFrame(() => {
      const now = latest;
      latest = null;
      f(...now);
    });
    latest = values;
  };
}

// Returns go(n, f), which calls f(0) ... f(n - 1) in slices of 12 ms; a new go ends the one before.
function slices() {
  let turn = 0;
  return (n, f) => {
    const mine = ++turn;
    let i = 0;
    const slice = () => {
      if (mine !== turn) return;
      for (const start = performance.now(); i < n && performance.now() - start < 12;) f(i++);
      if (i < n) setTimeout(slice);
    };
    slice();
  };
}

// ---- Parts of a panel -----------------------------------------------------------------------------------------------

function element(parent, tag, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

const row = (parent, kind = "") => element(parent, "div", {class: `row ${kind}`});

function draw(canvas, x) {  // x: a square's grey values, or a 32 x 32 image's three channels
  const colored = x.length === 3072, n = colored ? 1024 : x.length, size = Math.sqrt(n);
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const context = canvas.getContext("2d"), image = context.createImageData(size, size);
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = 255 * x[colored ? c * n + i : i];  // rounded and clamped
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

// A canvas with a caption; size is a class of panels.css: small, medium, large or plane.
function picture(parent, caption, size = "medium", label = caption) {
  const figure = element(parent, "figure", {class: size});
  const canvas = element(figure, "canvas", {width: 28, height: 28, role: "img", "aria-label": label});
  const text = element(figure, "figcaption", {}, caption);
  return {figure, canvas, draw: x => draw(canvas, x), say: words => { text.textContent = words; },
          name: words => canvas.setAttribute("aria-label", words)};
}

// changed(value) at each move; returns set(value), which only shows it. show(value) makes the text beside it.
function slider(parent, label, {min, max, step, value, show = number => fixed(number)}, changed) {
  const holder = element(parent, "label", {class: "slider"});
  element(holder, "span", {}, label);
  const input = element(holder, "input", {type: "range", min, max, step, value}), shown = element(holder, "output");
  const update = () => {
    shown.textContent = show(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  const set = number => { now = input.value = number; update(); };
  let now = value, before;
  input.addEventListener("input", () => { set(Number(input.value)); changed(now); });
  input.addEventListener("pointerdown", () => { before = now; });
  input.addEventListener("pointercancel", () => { set(before); changed(now); });  // the finger scrolls the page
  update();
  return set;
}

function button(parent, text, pressed) {
  const made = element(parent, "button", {type: "button"}, text);
  made.addEventListener("click", pressed);
  return made;
}

let groups = 0;

// A group of radio buttons; each option is a text, or {name, image}. changed(i); returns select(i), -1 for none.
function choice(parent, legend, options, selected, changed, kind = "") {
  const group = element(parent, "fieldset", {class: `choice ${kind}`}), name = `choice-${groups++}`;
  element(group, "legend", {}, legend);
  const inputs = options.map((option, i) => {
    const label = element(group, "label"), input = element(label, "input", {type: "radio", name});
    if (option.image) {
      input.setAttribute("aria-label", option.name);
      draw(element(label, "canvas", {"aria-hidden": "true"}), option.image);
    } else {
      element(label, "span", {}, option);
    }
    input.addEventListener("change", () => changed(i));
    return input;
  });
  group.addEventListener("keydown", event => {  // to the option where the arrow points; if none is there, to the next
    const [right, down] = STEPS[event.key] ?? [0, 0], from = event.target.getBoundingClientRect();
    const [next] = inputs.map(input => {
      const {left, top} = input.getBoundingClientRect(), [x, y] = [left - from.left, top - from.top];
      return {input, way: right * x + down * y, cost: right ? Math.abs(y) : 99 * y * down + Math.abs(x)};
    }).filter(({way, cost}) => way > 4 && !(right && cost > 9)).sort((a, b) => a.cost - b.cost || a.way - b.way);
    if (!next || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    next.input.focus();
    next.input.click();
  });
  const select = i => inputs.forEach((input, k) => { input.checked = k === i; });
  select(selected);
  return select;
}

// The test digits of weights/digits.js as a choice. They are chosen(image, i); returns select(i).
function digits(parent, {images, labels}, selected, chosen, legend = "a digit of the test set") {
  const image = i => images.slice(784 * i, 784 * (i + 1));
  const options = labels.map((y, i) => ({name: `${y}, the ${i % 2 ? "second" : "first"}`, image: image(i)}));
  return choice(parent, legend, options, selected, i => chosen(image(i), i), "digits");
}

// Words that a screen reader reads out once they have stood for half a second. Returns say(words).
function status(parent) {
  const shown = element(parent, "p", {class: "status", "aria-hidden": "true"});
  const read = element(parent, "p", {class: "read", role: "status"});
  let waiting;
  return words => {
    if (shown.textContent === words) return;
    shown.textContent = words;
    clearTimeout(waiting);
    waiting = setTimeout(() => { read.textContent = words; }, 500);
  };
}

const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

// Dragging calls place(u, v, first), each from 0 to 1 inside the canvas and beyond that outside; an arrow key
// step(right, down), with other keys in `keys`, {key: function}. With Alt, Ctrl or Meta a key is the browser's. With
// grips(), a list of [u, v], a finger drags only from near these; from elsewhere it scrolls, and a tap calls place.
function drag(canvas, place, step, keys = {}, grips = null) {
  let held = true;
  element(canvas.parentNode, "span", {class: "keys", "aria-hidden": "true"}, canvas.getAttribute("aria-label"));
  canvas.after(canvas.parentNode.lastChild);
  canvas.tabIndex = 0;
  canvas.classList.add("drag");
  canvas.setAttribute("role", "application");
  for (const kind of ["pointerdown", "pointermove", "click"]) canvas.addEventListener(kind, event => {
    const box = canvas.getBoundingClientRect(), [x, y] = [event.clientX - box.left, event.clientY - box.top];
    if (kind === "click" ? held : !event.isPrimary || event.buttons !== 1) return;
    if (kind === "pointerdown") {
      held = event.pointerType !== "touch" || !grips
        || grips().some(([u, v]) => Math.hypot(x - u * box.width, y - v * box.height) < 32);
      if (held) canvas.setPointerCapture(event.pointerId);
    }
    if (kind === "click" || held && canvas.hasPointerCapture(event.pointerId))
      place(x / box.width, y / box.height, kind !== "pointermove");
  });
  canvas.addEventListener("touchstart", event => { if (held) event.preventDefault(); });
  canvas.addEventListener("keydown", event => {
    const arrow = STEPS[event.key], other = keys[event.key];
    if (event.altKey || event.ctrlKey || event.metaKey || !(arrow || other)) return;
    event.preventDefault();
    if (arrow) step(...arrow);
    else other();
  });
}

// A 28 x 28 canvas to draw on, with an eraser. changed(x) after each change by hand; returns {x, set(image)}. The first
// stroke of the pen on an image that was set begins a drawing of one's own; the eraser works on that image.
function sketch(parent, label, changed) {
  const holder = element(parent, "div", {class: "sketch"});
  const {canvas} = picture(holder, label, "large", `${label}: arrow keys move, space draws or erases`);
  const controls = row(holder, "controls"), x = new Float32Array(784);
  let column = 14, line = 14, erasing = false, own = false;
  choice(controls, "tool", ["pen", "eraser"], 0, i => { erasing = i === 1; });
  button(controls, "clear", () => { x.fill(0); own = true; show(); });
  const dab = () => {
    if (!own && !erasing) x.fill(0);
    own = true;
    for (let i = 0; i < 784; i++) {
      const distance = Math.hypot(Math.floor(i / 28) - line, i % 28 - column);
      x[i] = erasing ? Math.min(x[i], clamp(distance - 1.6, 0, 1)) : Math.max(x[i], clamp(1.9 - distance, 0, 1));
    }
  };
  const paint = () => {
    draw(canvas, x);
    if (!canvas.matches(":focus-visible")) return;  // a cursor for the keyboard only
    canvas.getContext("2d").fillStyle = "#e69f00";
    canvas.getContext("2d").fillRect(Math.round(column), Math.round(line), 1, 1);
  };
  const show = () => { paint(); changed(x); };
  drag(canvas, (u, v, first) => {
    const right = 28 * u - 0.5 - column, down = 28 * v - 0.5 - line, [c, l] = [column, line];
    const n = first ? 1 : Math.ceil(2 * Math.hypot(right, down));
    for (let i = 1; i <= n; i++) {  // a line from the last place: a fast pointer leaves no gaps
      [column, line] = [c + right * i / n, l + down * i / n];
      dab();
    }
    if (n) show();
  }, (right, down) => {
    [column, line] = [clamp(Math.round(column) + right, 0, 27), clamp(Math.round(line) + down, 0, 27)];
    paint();
  }, {" ": () => { dab(); show(); }});
  canvas.addEventListener("focus", paint);
  canvas.addEventListener("blur", paint);
  paint();
  return {x, set: image => { x.set(image); own = false; paint(); }};
}

// ---- Words: a picture's codes (panels `words` and `prior`) ----------------------------------------------------------

// Of what weights/vqvae_decoder.js holds: decode(list of 64 words; null is none) -> 3 x 32 x 32 numbers, remembered;
// rgb(word) and css(word), the colour that it decodes to; paint(canvas, list, columns), one pixel for each word.
function vocabulary({decode, codebook, colors}) {
  const size = codebook.length / (colors.length / 3), remembered = new Map();
  const rgb = word => [0, 1, 2].map(c => 255 * colors[3 * word + c]);
  return {
    n: colors.length / 3,
    rgb,
    css: word => `rgb(${rgb(word).map(Math.round)})`,
    decode(list) {
      const key = list.join();
      if (!remembered.has(key)) {
        const e = new Float32Array(64 * size);  // a place without a word is 0, as the places beyond the border are
        list.forEach((word, place) => {
          if (word !== null) for (let i = 0; i < size; i++) e[64 * i + place] = codebook[size * word + i];
        });
        if (remembered.size > 100) remembered.clear();
        remembered.set(key, decode(e).map(value => value + 0.5));
      }
      return remembered.get(key);
    },
    paint(canvas, list, columns) {
      [canvas.width, canvas.height] = [columns, Math.ceil(list.length / columns)];
      const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
      list.forEach((word, i) => { if (word !== null) image.data.set([...rgb(word).map(Math.round), 255], 4 * i); });
      context.putImageData(image, 0, 0);
    },
  };
}

// A canvas with a swatch for each pixel: chosen(place) at a click or a tap, which leaves a finger free to scroll, and
// step(right, down) at an arrow key.
function tap(canvas, chosen, step) {
  drag(canvas, () => {}, step, {}, () => []);
  canvas.classList.add("tap");
  canvas.addEventListener("click", event => {
    const box = canvas.getBoundingClientRect(), at = (share, n) => clamp(Math.floor(share * n), 0, n - 1);
    chosen(at((event.clientY - box.top) / box.height, canvas.height) * canvas.width
           + at((event.clientX - box.left) / box.width, canvas.width));
  });
}

// ---- The loader -----------------------------------------------------------------------------------------------------

const base = document.currentScript.src.replace(/[^/]*$/, "");
const definitions = {}, packed = {}, scripts = {}, loaded = {};

function script(path) {  // a <script> works from a disk, where fetch does not
  scripts[path] ||= new Promise((resolve, reject) => {
    const tag = element(document.head, "script", {src: base + path});
    tag.onload = resolve;
    tag.onerror = () => reject(new Error(`page/${path} is missing`));
  });
  return scripts[path];
}

function load(name) {  // what weights/NAME.js holds, ready for use
  loaded[name] ||= script(`weights/${name}.js`).then(() => ready(packed[name]));
  return loaded[name];
}

async function open(section) {
  if (section.dataset.state) return;
  section.dataset.state = "loading";
  const name = section.dataset.panel, note = element(section, "p", {class: "loading", role: "status"}, "loading …");
  try {
    await script(`panels/${name}.js`);
    const {title, predict, weights, build} = definitions[name];
    const head = element(section, "div", {class: "head"});
    element(head, "strong", {}, title);
    if (section.requestFullscreen) {
      let top;  // where the panel was in the window: Chromium does not always come back to it
      const fill = button(head, "fill the screen", () => {
        if (document.fullscreenElement) return document.exitFullscreen();
        ({top} = section.getBoundingClientRect());
        section.requestFullscreen();
      });
      section.addEventListener("fullscreenchange", () => {
        fill.textContent = document.fullscreenElement ? "back to the text" : "fill the screen";
        if (!document.fullscreenElement) scrollBy(0, section.getBoundingClientRect().top - top);
      });
    }
    const question = element(section, "p", {class: "predict"});
    element(question, "b", {}, "Predict. ");
    question.append(predict);
    section.append(note);
    const all = await Promise.all(weights.map(load));
    await build(element(section, "div", {class: "body"}), Object.fromEntries(weights.map((name, i) => [name, all[i]])));
    section.dataset.state = "ready";
    note.remove();
    if (location.hash === `#${section.id}`) section.scrollIntoView();
  } catch (error) {
    section.dataset.state = "failed";
    note.textContent = `This panel does not work here: ${error.message}.`;
    console.error(error);
  }
}

function start() {
  const observer = new IntersectionObserver(entries => entries.forEach(({isIntersecting, target}) => {
    if (isIntersecting) open(target);
  }), {rootMargin: "800px"});
  for (const section of document.querySelectorAll("[data-panel]")) {
    section.hidden = false;
    observer.observe(section);
  }
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();

Object.assign(Panels, {
  define: (name, definition) => { definitions[name] = definition; },
  weights: (name, content) => { packed[name] = content; },
  load, ready, layers, run, encode, softmax, sum, clamp, random, normals, fixed, soon, slices, element, row, draw,
  picture, slider, button, choice, digits, status, drag, sketch, vocabulary, tap,
  DIGIT_COLORS: ["#cc79a7", "#e69f00", "#999999", "#d55e00", "#0072b2",
                 "#56b4e9", "#8c510a", "#009e73", "#000000", "#e0cc00"],
});

}
