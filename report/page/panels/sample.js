"use strict";
// Section 3: encode, sample, decode. The encoder gives a cloud of codes; draws from it are decoded. The noise epsilon
// stays until "again", so what a slider moves is one cloud.

Panels.define("sample", {
  title: "Encode, sample, decode",
  predict: "The encoder gives a digit not a point but a cloud, and each of the twelve images is a draw from it. What "
    + "happens if the cloud's variance is twenty times as large?",
  weights: ["digits", "vae"],
  build(root, {digits, vae}) {
    const {fixed, element} = Panels, DRAWS = 12, {kl} = vae, n = kl.length;
    const used = [...kl.keys()].filter(j => kl[j] > 0.05).sort((a, b) => kl[b] - kl[a]);
    // mu and sigma are the encoder's; center is mu, or what the sliders have made of it.
    let mu, sigma, center, factor = 1, seed = 1, epsilon = Panels.normals(DRAWS * n, seed);

    const top = Panels.row(root, "input");
    const pad = Panels.sketch(top, "the digit: draw here", x => { select(-1); encode(x); });
    const side = element(top, "div", {class: "beside"});
    const select = Panels.digits(side, digits, 14, x => { pad.set(x); encode(x); });
    const times = value => `${fixed(value, 1)} ×`;
    const setFactor = Panels.slider(side, "variance", {min: 1, max: 20, step: 0.5, value: 1, show: times}, value => {
      factor = value;
      bands();
      sample();
    });
    const controls = Panels.row(side, "controls");
    Panels.button(controls, "again, with another epsilon", () => {
      epsilon = Panels.normals(DRAWS * n, ++seed);
      sample();
    });
    Panels.button(controls, "reset", () => {
      factor = 1;
      setFactor(1);
      center = mu.slice();
      show();
    });
    const images = element(root, "div", {class: "grid seven"});
    const middle = Panels.picture(images, "from mu", "small", "decoded from the middle of the cloud");
    const draws = Array.from({length: DRAWS}, (_, k) => Panels.picture(images, `${k + 1}`, "small", `draw ${k + 1}`));
    const say = Panels.status(root);

    element(root, "p", {}, "The code's numbers, the most informative first, with their KL in nats. The images show "
      + "what each does to this digit from −3 to 3, the bar where the cloud is: one sigma to each side.");
    const list = element(root, "div", {class: "dimensions"});
    const dimensions = used.map(j => {
      const box = element(list, "div", {class: "dimension"});
      const strip = element(box, "canvas", {width: 7 * 28, height: 28, "aria-hidden": "true"});
      const band = element(element(box, "div", {class: "track"}), "div", {class: "band"});
      const label = `z${j + 1}, ${fixed(kl[j])} nats`, range = {min: -3, max: 3, step: 0.05, value: 0};
      const set = Panels.slider(box, label, range, value => {
        center[j] = value;
        bands();
        decode();
      });
      return {j, strip, band, set};
    });

    const moved = () => center.some((value, j) => value !== mu[j]);
    const bands = () => dimensions.forEach(({j, band}) => {
      const spread = Math.sqrt(factor) * sigma[j];
      band.style.left = `${100 * (1 / 14 + (center[j] - spread + 3) / 7)}%`;
      band.style.width = `${100 * 2 * spread / 7}%`;
    });
    const sample = Panels.soon(() => {
      const stretch = Math.sqrt(factor);
      draws.forEach((draw, k) =>
        draw.draw(vae.decoder(center.map((value, j) => value + stretch * sigma[j] * epsilon[n * k + j]))));
      const spread = used.slice(0, 3).map(j => `${fixed(stretch * sigma[j])} in z${j + 1}`).join(", ");
      say(`${pad.x.some(Boolean) ? "" : "Nothing is drawn. "}z = ${moved() ? "what the sliders say" : "mu"} + sigma `
        + `epsilon, at ${fixed(factor, 1)} times the variance: sigma is ${spread}, …`);
    });
    const decodeMiddle = Panels.soon(() => {
      middle.draw(vae.decoder(center));
      middle.say(moved() ? "by hand" : "from mu");
    });
    const decode = () => { decodeMiddle(); sample(); };
    const show = () => {  // the sliders stand at the center
      dimensions.forEach(({j, set}) => set(center[j]));
      bands();
      decode();
    };
    const traversals = Panels.slices(), small = document.createElement("canvas");
    const encode = Panels.soon(x => {
      ({mu, sigma} = Panels.encode(vae, x));
      center = mu.slice();
      show();
      traversals(7 * used.length, i => {  // one number of z from -3 to 3, the others as the encoder gives them
        const {j, strip} = dimensions[Math.floor(i / 7)], z = mu.slice();
        z[j] = i % 7 - 3;
        Panels.draw(small, vae.decoder(z));
        strip.getContext("2d").drawImage(small, 28 * (i % 7), 0);
      });
    });
    const first = digits.images.slice(14 * 784, 15 * 784);
    pad.set(first);
    encode(first);
  },
});
