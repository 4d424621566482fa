"use strict";
// Section 3: q(z|x) = N(mu, sigma^2), the prior N(0, 1) and their KL, as one moves mu and sigma. The samples are
// z = mu + sigma epsilon, and epsilon stays until "again". No weights.

Panels.define("bells", {
  title: "Two bells and their KL",
  predict: "Which costs more nats, a bell half as wide as the prior or one twice as wide? Drag the bell's top to move "
    + "it, its side to make it wide or narrow.",
  weights: [],
  build(root) {
    const {element, row, slider, button, status, drag, soon, normals, clamp, fixed} = Panels;
    const EDGE = 5, HIGHEST = 1.05, N = 12;  // of z, of the density; samples
    let mu = 1.2, sigma = 0.5, seed = 1, epsilon = normals(N, seed);

    const drawing = element(root, "div", {class: "drawing", "aria-label":
      "two bells over z: the left and right arrows move q(z|x), up and down make it wider and narrower"});
    legend([["q", "q(z|x) = N(μ, σ²)"], ["p", "the prior, N(0, 1)"], ["z", "z = μ + σε"]]);
    const bar = element(root, "div", {class: "bar", "aria-hidden": "true"});
    const parts = ["of-mu", "of-sigma"].map(name => element(bar, "span", {class: name}));
    legend([["of-mu", "KL from the place: μ²/2"], ["of-sigma", "from the width: (σ² − 1)/2 − log σ"]]);
    const say = status(root), controls = row(root, "controls");
    const setMu = slider(controls, "μ", {min: -3, max: 3, step: 0.05, value: mu}, value => { mu = value; show(); });
    const setSigma = slider(controls, "σ", {min: 0.4, max: 2, step: 0.05, value: sigma},
                            value => { sigma = value; show(); });
    button(controls, "again: new ε", () => { epsilon = normals(N, ++seed); show(); });
    button(controls, "reset", () => { [seed, epsilon] = [1, normals(N, 1)]; move(1.2, 0.5); });

    function legend(keys) {
      const holder = element(root, "p", {class: "legend"});
      for (const [kind, text] of keys) element(holder, "span", {class: `key ${kind}`}, text);
    }

    const density = (z, m, s) => Math.exp(-0.5 * ((z - m) / s) ** 2) / (s * Math.sqrt(2 * Math.PI));
    const width = () => drawing.clientWidth, lines = () => [0.73, 0.92].map(share => share * drawing.clientHeight);
    const height = p => 8 + (lines()[0] - 8) * (1 - p / HIGHEST);
    const across = z => width() * (z + EDGE) / (2 * EDGE);
    const handles = () => [[mu, density(mu, mu, sigma)], [mu - sigma, density(sigma, 0, sigma)],
                           [mu + sigma, density(sigma, 0, sigma)]].map(([z, p]) => [across(z), height(p)]);

    function bell(m, s, kind) {
      const [axis] = lines();
      let path = "";
      for (let z = -EDGE; z <= EDGE; z += 0.02)
        path += `L${across(z).toFixed(1)} ${height(density(z, m, s)).toFixed(1)}`;
      return `<path class="${kind}" d="M0 ${axis}${path}L${width()} ${axis}"/>`;
    }

    function paint() {
      const [axis, noise] = lines();
      let inner = bell(0, 1, "p") + bell(mu, sigma, "q")
        + `<path class="axis" d="M0 ${axis}h${width()}M0 ${noise}h${width()}"/>`;
      for (let z = 1 - EDGE; z < EDGE; z++)
        inner += `<text x="${across(z)}" y="${noise + 15}" text-anchor="middle">${fixed(z, 0)}</text>`;
      for (const e of epsilon) {
        const [from, to] = [across(e), across(mu + sigma * e)];
        inner += `<path class="thread" d="M${from} ${noise}L${to} ${axis}"/><circle class="epsilon" r="4" cx="${from}" `
          + `cy="${noise}"/><circle class="z" r="5" cx="${to}" cy="${axis}"/>`;
      }
      handles().forEach(([x, y]) => { inner += `<circle class="handle" r="8" cx="${x}" cy="${y}"/>`; });
      inner += `<text x="4" y="${axis - 6}">z</text><text x="4" y="${noise - 6}">ε</text>`;
      drawing.innerHTML = `<svg aria-hidden="true">${inner}</svg>`;
      const kl = [mu * mu / 2, (sigma * sigma - 1) / 2 - Math.log(sigma)];
      parts.forEach((part, i) => { part.style.width = `${100 * kl[i] / 6}%`; });  // of 6 nats
      say(`KL = ${fixed(kl[0])} + ${fixed(kl[1])} = ${fixed(kl[0] + kl[1])} nats`);
    }
    const show = soon(paint);

    function move(m, s) {
      mu = clamp(Math.round(20 * m) / 20, -3, 3);
      sigma = clamp(Math.round(20 * s) / 20, 0.4, 2);
      setMu(mu);
      setSigma(sigma);
      show();
    }

    let held = -1, offset = 0;  // which handle, -1 for none; how far the bell's middle is from the pointer
    drag(drawing, (u, v, first) => {
      const z = EDGE * (2 * u - 1);
      if (first) {
        const far = handles().map(([x, y]) => Math.hypot(x - u * width(), y - v * drawing.clientHeight));
        held = far.findIndex(value => value < 32 && value === Math.min(...far));
        offset = mu - z;
      }
      if (held > 0) move(mu, Math.abs(z - mu));
      else if (!held) move(z + offset, sigma);
    }, (right, down) => move(mu + 0.05 * right, sigma - 0.05 * down), {},
         () => handles().map(([x, y]) => [x / width(), y / drawing.clientHeight]));
    new ResizeObserver(paint).observe(drawing);
    paint();
  },
});
