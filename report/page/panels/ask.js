"use strict";
// Section 4: a handwriting z, decoded under all ten labels. It is drawn from the prior, or the encoder's for a digit.

Panels.define("ask", {
  title: "Ask for a digit",
  predict: "The label is given beside the code. So what is left for the code to say? Draw a digit, slanted or heavy, "
    + "and see the other nine in the same hand.",
  weights: ["digits", "cvae"],
  build(root, {digits, cvae}) {
    const {clamp, fixed, element, sum} = Panels, {kl} = cvae, n = kl.length, LABELS = [...Array(10).keys()];
    const [first, second] = [...kl.keys()].sort((a, b) => kl[b] - kl[a]);
    const join = (x, y) => Float32Array.of(...x, ...LABELS.map(label => Number(label === y)));
    const decode = (z, y) => cvae.decoder(join(z, y));
    let z, label, seed = 0, from = "", source = "digit";

    const top = Panels.row(root, "input");
    const pad = Panels.sketch(top, "the digit: draw here", () => { select(-1); source = "drawing"; guess(); });
    const side = element(top, "div", {class: "beside"});
    const select = Panels.digits(side, digits, 4, (x, i) => {
      pad.set(x);
      source = "digit";
      encode(digits.labels[i]);
    });
    const setLabel = Panels.choice(side, "it is encoded as a", LABELS.map(String), 2, y => encode(y));
    Panels.button(side, "another handwriting, from N(0, I)", () => {
      z = Panels.normals(n, ++seed);
      [label, from] = [-1, "drawn from N(0, I)"];
      setLabel(-1);
      show();
    });
    const say = Panels.status(side);

    const row = Panels.row(root, "askrow");
    const map = Panels.picture(row, `z${first + 1} across, z${second + 1} up: drag. The circles hold 39\u00a0% and `
                               + "86\u00a0% of N(0, I)'s draws", "large map",
                               `the two most informative numbers of z, ${first + 1} and ${second + 1}. `
                               + "Arrow keys move them");
    const answers = element(row, "div", {class: "grid five"});
    const all = LABELS.map(y => Panels.picture(answers, String(y), "small", `this handwriting as a ${y}`));
    const move = (a, b) => {
      z[first] = clamp(a, -3, 3);
      z[second] = clamp(b, -3, 3);
      from = "changed by hand";
      show();
    };
    Panels.drag(map.canvas, (u, v) => move(6 * u - 3, 3 - 6 * v),
                (right, down) => move(z[first] + 0.1 * right, z[second] - 0.1 * down), {},
                () => [[(z[first] + 3) / 6, (3 - z[second]) / 6]]);

    const show = Panels.soon(() => {
      all.forEach(({draw, figure}, y) => {
        draw(decode(z, y));
        figure.classList.toggle("chosen", y === label);
      });
      map.canvas.width = map.canvas.height = 336;
      const context = map.canvas.getContext("2d"), x = 168 + 56 * z[first], y = 168 - 56 * z[second];
      [context.strokeStyle, context.lineWidth] = ["#777", 2];
      for (const radius of [56, 112]) {  // one and two standard deviations of the prior
        context.beginPath();
        context.arc(168, 168, radius, 0, 2 * Math.PI);
        context.stroke();
      }
      context.fillRect(x - 4, y - 4, 8, 8);
      [context.strokeStyle, context.lineWidth] = ["#000", 4];
      context.beginPath();
      context.arc(x, y, 16, 0, 2 * Math.PI);
      context.stroke();
      const [a, b] = [first, second].map(j => `z${j + 1}\u00a0=\u00a0${fixed(z[j])}`);
      say(`z ${from}: ${a}, ${b}`);
    });
    function encode(y, how = `of this ${source}, encoded as\u00a0${y}`) {
      [label, z, from] = [y, Panels.encode(cvae, join(pad.x, y)).mu, how];
      setLabel(y);
      show();
    }
    // Whoever draws need not say what: the label under which the digit costs the fewest nats, at z = mu.
    const log = p => Math.max(Math.log(p), -100);  // as PyTorch's BCE
    const guess = Panels.soon(() => {
      const costs = LABELS.map(y => {
        const {mu, sigma} = Panels.encode(cvae, join(pad.x, y)), x = decode(mu, y);
        const bce = -sum(x.map((p, i) => pad.x[i] * log(p) + (1 - pad.x[i]) * log(1 - p)));
        return bce + sum(mu.map((m, j) => 0.5 * (m * m + sigma[j] ** 2 - 1) - Math.log(sigma[j])));
      });
      const [best, next] = LABELS.toSorted((a, b) => costs[a] - costs[b]);
      const [fewest, more] = [costs[best], costs[next]].map(cost => fixed(cost, 0));
      encode(best, `of this drawing as\u00a0${best}, where its loss is lowest: ${fewest} nats (next best: as `
                   + `${next}, ${more} nats)`);
    });
    pad.set(digits.images.slice(4 * 784, 5 * 784));
    encode(2);
  },
});
