"use strict";
// Section 2: a digit with noise, and what the denoising autoencoder and a Gaussian filter make of it.

Panels.define("noise", {
  title: "Noise, and without it",
  predict: "The network has learned from noise of 0.5 only. What does it make of twice as much, of a digit without "
    + "any, and of damage that is no noise at all?",
  weights: ["digits", "denoise_ae"],
  build(root, {digits, denoise_ae: {denoise, filter}}) {
    const {clamp, random, normals, fixed, sum} = Panels;
    // Each takes a clean image, the slider's amount and a seed.
    const kinds = {
      "Gaussian noise": (x, amount, seed) => add(x, normals(784, seed), amount),
      "salt and pepper": (x, amount, seed) => {
        const uniform = random(seed);
        return x.map(value => {
          const [hit, white] = [uniform(), uniform()];  // both in any case: the slider only adds pixels
          return hit < 0.5 * amount ? Number(white < 0.5) : value;
        });
      },
      "a grey block": (x, amount, seed) => {
        const uniform = random(seed), half = Math.round(20 * amount) / 2, row = 9 + 10 * uniform();
        const column = 9 + 10 * uniform();
        return x.map((value, i) =>
          Math.abs(Math.floor(i / 28) - row) < half && Math.abs(i % 28 - column) < half ? 0.5 : value);
      },
      "blur": (x, amount) => amount ? blur(x, 4 * amount) : x.slice(),
    };
    const add = (x, epsilon, level) => x.map((value, i) => clamp(value + level * epsilon[i], 0, 1));
    let kind = "Gaussian noise", amount = 0.5, seed = 1;

    const update = Panels.soon(() => {
      const x = pad.x, damaged = kinds[kind](x, amount, seed);
      const shown = [damaged, blur(damaged, filter.sigma).map(value => clamp(filter.a * value + filter.b, 0, 1)),
                     denoise(damaged)];
      const names = ["the input", "a Gaussian filter, fitted at 0.5", "the network"];
      const errors = shown.map(y => sum(y.map((value, i) => (value - x[i]) ** 2)) / 784);
      shown.forEach((y, i) => {
        pictures[i].draw(y);
        pictures[i].say(`${names[i]}: MSE ${fixed(errors[i], 4)}`);
      });
      say(`Mean squared error: ${fixed(errors[0], 4)} before, ${fixed(errors[2], 4)} after the network.`);
    });
    const select = Panels.digits(root, digits, 4, x => { pad.set(x); update(); });
    const images = Panels.row(root, "four");
    const pad = Panels.sketch(images, "the clean digit: draw here", () => { select(-1); update(); });
    const pictures = ["the input", "Gaussian filter", "the network"].map(name => Panels.picture(images, name, "large"));
    const controls = Panels.row(root, "controls");
    Panels.choice(controls, "damage", Object.keys(kinds), 0, i => { kind = Object.keys(kinds)[i]; update(); });
    Panels.slider(controls, "amount", {min: 0, max: 1, step: 0.05, value: amount}, value => {
      amount = value;
      update();
    });
    Panels.button(controls, "again, with other noise", () => { seed++; update(); });
    const say = Panels.status(root);

    // 11 x 11 numbers of a Gaussian, and the image mirrored at its edges, as denoise_ae.gaussian_filter does.
    function blur(x, sigma) {
      const kernel = Array.from({length: 11}, (_, i) => Math.exp(-0.5 * ((i - 5) / sigma) ** 2)), total = sum(kernel);
      const mirror = i => i < 0 ? -i : i > 27 ? 54 - i : i;
      const along = (y, at) => y.map((_, i) => {
        let value = 0;
        for (let k = 0; k < 11; k++) value += kernel[k] / total * y[at(Math.floor(i / 28), i % 28, k - 5)];
        return value;
      });
      return along(along(x, (r, c, k) => 28 * r + mirror(c + k)), (r, c, k) => 28 * mirror(r + k) + c);
    }

    pad.set(digits.images.slice(4 * 784, 5 * 784));
    update();
  },
});
