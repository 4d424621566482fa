"use strict";
// Section 6.4: the nearest of seven codes in the plane, what straight-through does to a z, and where that
// leads many z. It is a whole VQ-VAE, but a tiny one: an "image" x is a point, z is free (there is no encoder), the
// decoder is a 2 x 2 matrix, at each step the best one, and the codes follow by the moving average. No weights.

Panels.define("cells", {
  title: "The nearest code, and the push away from it",
  predict: "Drag the large z until it changes its code. What happens to the arrow? Then press play: all z follow "
    + "their pushes, and the codes follow the z. Where will they be after 300 steps?",
  weights: [],
  build(root) {
    const {element, row, button, choice, status, drag, soon, normals, fixed, sum} = Panels;
    const CODES = [[-1.9, 1.2], [-0.2, 1.7], [1.8, 1.3], [-1.6, -0.7], [0.35, -0.2], [2.1, -0.9], [0.1, -1.9]];
    const N = 43, STEPS = 300, RATE = 0.2, DECAY = 0.9;  // images; steps of a run; of z; of the moving average
    const START = 3.7;  // half the width of what is shown, at first
    const RULES = [{name: "no commitment loss", color: "rule-1", pull: 0},
                   {name: "with commitment loss, λ = 1", color: "rule-0", pull: 1},
                   {name: "none, and the push without its outward part", color: "rule-2", pull: 0, inward: true},
                   {name: "none, and the gradient taken at z, not at e", color: "rule-3", pull: 0, seen: true}];
    let rule = 0, view = START, x, z, codes, count, total, decoder, timer = 0;
    const curves = RULES.map(() => []);  // the median norm of z at each step

    const body = row(root);
    const left = element(body, "div", {class: "wide"}), side = element(body, "div", {class: "narrow"});
    const drawing = element(left, "div", {class: "drawing", style: "aspect-ratio: 28 / 24", "aria-label":
      "the cells of seven codes: arrow keys move the large z"});
    const legend = element(left, "p", {class: "legend"});
    for (const [kind, text] of [["code", "codes, each in its cell"], ["free", "z, and the z of other images"],
      ["nearest", "z is replaced by e, the nearest code"], ["push", "the push: what e should do, copied to z"],
      ["outward", "its part along z − e"], ["pull", "the commitment loss pulls z back"]])
      element(legend, "span", {class: `key ${kind}`}, text);
    element(legend, "span", {}, "dashed, when all has grown: the frame at the start");
    const say = status(side);
    choice(side, "the rule that z follows", RULES.map(({name}) => name), 0, i => { rule = i; start(); });
    const controls = row(side, "controls");
    button(controls, "step", () => { pause(); step(); show(); });
    const player = button(controls, "play", () => { if (timer) pause(); else play(); });
    button(controls, "start over", () => start());
    element(side, "p", {class: "note"}, "A whole VQ-VAE, but a tiny one: an image is a point of the plane, z is free, "
      + "the decoder is a 2 × 2 matrix, at each step the best one, and the codes follow by the moving average. (Its λ "
      + "is not on the report's scale.)");
    const chart = element(side, "div", {class: "drawing", style: "height: 130px", "aria-hidden": "true"});
    const colors = element(side, "p", {class: "legend"});
    for (const [i, text] of ["none", "λ = 1", "without the outward part", "gradient at z"].entries())
      element(colors, "span", {class: `key ${RULES[i].color}`}, text);

    // ---- The tiny VQ-VAE. A vector is [a, b], the decoder is [[a, b], [c, d]]. -------------------------------------

    const plus = (v, w, k = 1) => [v[0] + k * w[0], v[1] + k * w[1]];
    const dot = (v, w) => v[0] * w[0] + v[1] * w[1];
    const norm = v => Math.hypot(...v);

    function nearest(v) {
      const far = codes.map(code => norm(plus(v, code, -1)));
      return far.indexOf(Math.min(...far));
    }

    function fit() {  // the best decoder: the least squares of decoder e - x
      const e = z.map(v => codes[nearest(v)]), mean = f => sum(e.map(f)) + 1e-6;
      const [a, b, c] = [mean(v => v[0] * v[0]), sum(e.map(v => v[0] * v[1])), mean(v => v[1] * v[1])];
      decoder = [0, 1].map(i => {
        const [p, q] = [0, 1].map(j => sum(e.map((v, n) => x[n][i] * v[j])));
        return [(p * c - q * b) / (a * c - b * b), (q * a - p * b) / (a * c - b * b)];
      });
    }

    function forces(v, image) {  // of one z: its code, its push (seen: taken at z), the part of that along z - e
      const e = codes[nearest(v)], {seen} = RULES[rule];
      const error = decoder.map((line, i) => image[i] - dot(line, seen ? v : e));
      const push = [0, 1].map(j => dot(error, [decoder[0][j], decoder[1][j]])), away = plus(v, e, -1);
      const cosine = dot(push, away) / (norm(push) * norm(away) || 1);
      const outward = [0, 1].map(i => away[i] * dot(push, away) / (dot(away, away) || 1));
      return {e, push, away, cosine, outward};
    }

    function step() {
      if (curves[rule].length > STEPS) return;
      fit();
      const {pull, inward} = RULES[rule], chosen = z.map(nearest);
      const moved = z.map((v, i) => {
        const {push, away, cosine, outward} = forces(v, x[i]);
        const kept = inward && cosine > 0 ? plus(push, outward, -1) : push;
        return plus(plus(v, kept, RATE), away, -RATE * pull);
      });
      codes.forEach((_, k) => {  // VectorQuantizer.update
        const members = z.filter((_, i) => chosen[i] === k);
        count[k] = DECAY * count[k] + (1 - DECAY) * members.length;
        total[k] = members.reduce((all, v) => plus(all, v, 1 - DECAY), total[k].map(value => DECAY * value));
        codes[k] = total[k].map(value => value / Math.max(count[k], 1e-9));
      });
      z = moved;
      fit();
      curves[rule].push(median());
    }

    const median = () => z.map(norm).sort((a, b) => a - b)[N >> 1];

    function start() {
      pause();
      const noise = normals(2 * N, 1);
      x = Array.from({length: N}, (_, i) => plus(CODES[i % 7], [noise[2 * i], noise[2 * i + 1]], 0.75));
      z = x.map(v => [...v]);
      x[0] = [1.35, -0.55];  // the large z and its push
      z[0] = [0.95, 0.35];
      codes = CODES.map(code => [...code]);
      count = codes.map((_, k) => z.filter(v => nearest(v) === k).length);
      total = codes.map((code, k) => code.map(value => count[k] * value));
      view = START;
      curves[rule] = [];
      fit();
      curves[rule].push(median());
      show();
    }

    function play() {
      if (curves[rule].length > STEPS) start();
      player.textContent = "pause";
      timer = setInterval(() => {
        step();
        show();
        if (curves[rule].length > STEPS) pause();
      }, 50);
    }

    function pause() {
      clearInterval(timer);
      timer = 0;
      player.textContent = "play";
    }

    // ---- What is shown ----------------------------------------------------------------------------------------------

    function cell(code) {  // the rectangle, cut along the middle between this code and each other one
      let corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([a, b]) => [a * view, b * view * 24 / 28]);
      for (const other of codes) {
        if (other === code) continue;
        const way = plus(other, code, -1), middle = dot(way, plus(code, other).map(value => value / 2));
        const beyond = corners.map(corner => dot(way, corner) - middle), kept = [];
        corners.forEach((corner, i) => {
          const j = (i + 1) % corners.length, next = corners[j];
          if (beyond[i] <= 0) kept.push(corner);
          const crossing = beyond[i] / (beyond[i] - beyond[j]);
          if (beyond[i] * beyond[j] < 0) kept.push(plus(corner, plus(next, corner, -1), crossing));
        });
        corners = kept;
      }
      return corners;
    }

    function paint() {
      const width = drawing.clientWidth;
      const at = ([a, b]) => [width * (a / view + 1) / 2, width * (24 / 28 - b / view) / 2];
      const point = v => at(v).map(value => value.toFixed(2)).join(" ");
      const dots = (list, kind, r) => list.map(v => {
        const [a, b] = at(v);
        return `<circle class="${kind}" r="${r}" cx="${a.toFixed(2)}" cy="${b.toFixed(2)}"/>`;
      }).join("");
      const arrow = (from, way, kind) => `<path class="${kind}" marker-end="url(#cells-${kind.split(" ")[0]})" `
        + `d="M${point(from)}L${point(plus(from, way))}"/>`;
      const {e, push, away, cosine, outward} = forces(z[0], x[0]);
      // A push is a gradient: it shrinks as the decoder's weights do. Its arrow is drawn in the units of z.
      const unit = 2 / sum(decoder.flat().map(value => value * value)), drawn = v => v.map(value => value * unit);
      const {pull, inward, seen} = RULES[rule];
      const heads = ["nearest", "push", "outward", "pull"].map(kind =>
        `<marker id="cells-${kind}" class="${kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="4" `
        + `markerHeight="4" orient="auto"><path d="M0 0L8 4L0 8z"/></marker>`).join("");
      const square = [[-1, 1], [1, 1], [1, -1], [-1, -1]].map(([a, b]) => [a * START, b * START * 24 / 28]);
      drawing.innerHTML = `<svg aria-hidden="true"><defs>${heads}</defs>`
        + (view > START ? `<path class="start" d="M${square.map(point).join("L")}Z"/>` : "")
        + codes.map(code => `<polygon class="cell${code === e ? " chosen" : ""}" `
          + `points="${cell(code).map(point).join(" ")}"/>`).join("")
        + dots(z.slice(1), "other", 3) + dots(codes, "code", 5) + dots([e], "chosen", 7)
        + arrow(z[0], plus(e, z[0], -1), "nearest") + (seen ? "" : arrow(e, drawn(push), "push wish"))
        + arrow(z[0], drawn(push), "push") + arrow(z[0], drawn(outward), "outward")
        + (pull ? arrow(z[0], drawn(away.map(value => -pull * value)), "pull") : "")
        + dots([z[0]], "z", 7) + [-view, view].map((edge, i) => `<text x="${i ? width - 6 : 6}" y="16" `
          + `text-anchor="${i ? "end" : "start"}">${fixed(edge, 1)}</text>`).join("") + "</svg>";
      const way = cosine > 0 ? "away from it" : "towards it";
      say(`Step ${curves[rule].length - 1}. The large z is ${fixed(norm(away))} from its code, and the push leads `
        + `${way} (cosine ${fixed(cosine)})${inward && cosine > 0 ? "; that part is taken out" : ""}. `
        + `Median length of all z: ${fixed(curves[rule].at(-1))}.`);
    }
    const show = soon(() => {
      while (Math.max(...z.map(([a, b]) => Math.max(Math.abs(a), Math.abs(b) * 28 / 24))) > 0.97 * view) view *= 1.25;
      paint();
      plot();
    });

    function plot() {
      const width = chart.clientWidth, top = 10;
      const at = (value, t) => [26 + (width - 30) * t / STEPS, 110 - 100 * value / top].map(part => part.toFixed(1));
      const line = (curve, i) => {
        if (!curve.length) return "";
        const [right, low] = at(curve.at(-1), curve.length - 1);
        const points = curve.map((value, t) => at(value, t).join(" ")).join("L");
        return `<path class="curve ${RULES[i].color}" d="M${points}"/>`
          + `<circle class="${RULES[i].color}" r="4" cx="${right}" cy="${low}"/>`;
      };
      chart.innerHTML = `<svg><path class="axis" d="M26 10V110H${width - 4}"/>${curves.map(line).join("")}`
        + `<text x="22" y="16" text-anchor="end">${top}</text><text x="22" y="112" text-anchor="end">0</text>`
        + `<text x="32" y="16">median length of z</text>`
        + `<text x="${width - 4}" y="126" text-anchor="end">${STEPS} steps</text></svg>`;
    }

    function move(a, b) {
      z[0] = [a, b];
      fit();
      curves[rule].splice(-1, 1, median());
      show();
    }
    drag(drawing, (u, v) => move(view * Math.min(Math.max(2 * u - 1, -0.98), 0.98),
                                 view * 24 / 28 * Math.min(Math.max(1 - 2 * v, -0.98), 0.98)),
         (right, down) => move(z[0][0] + 0.03 * view * right, z[0][1] - 0.03 * view * down), {},
         () => [[(z[0][0] / view + 1) / 2, (1 - z[0][1] / view * 28 / 24) / 2]]);
    new ResizeObserver(show).observe(drawing);
    start();
  },
});
