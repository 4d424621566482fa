"use strict";
// Section 5: from the lower left quarter, BaselineNN gives one answer, and the CVAE a new one for each z.

Panels.define("complete", {
  title: "Complete it",
  predict: "Both networks see the lower left quarter only. How many answers does the CVAE need until one of them is "
    + "nearer to the original than BaselineNN's only answer?",
  weights: ["digits", "cvae_structured"],
  build(root, {digits, cvae_structured: {decoder, baseline, latent_dim}}) {
    const {fixed, element} = Panels, MOST = 40;
    const given = i => i >= 14 * 28 && i % 28 < 14, visible = [...Array(784).keys()].filter(given);
    let k = 10, seed = 1, z = Panels.normals(MOST * latent_dim, seed), c, errors = [], one;

    const select = Panels.digits(root, digits, 6, x => { pad.set(x); complete(); });
    const images = Panels.row(root, "four");
    const pad = Panels.sketch(images, "the original: draw here", () => { select(-1); complete(); });
    const quarter = Panels.picture(images, "what is given", "large");
    const single = Panels.picture(images, "BaselineNN", "large");
    const best = Panels.picture(images, "CVAE", "large");
    const controls = Panels.row(root, "controls");
    Panels.slider(controls, "answers of the CVAE", {min: 1, max: MOST, step: 1, value: k, show: String}, value => {
      k = value;
      answer();
    });
    Panels.button(controls, "again, with other z", () => {
      z = Panels.normals(MOST * latent_dim, ++seed);
      errors = [];
      answer();
    });
    const say = Panels.status(root);
    const many = element(root, "div", {class: "grid"}), pictures = [], answers = [];

    // What is known is shown as it is, and so adds nothing to the error.
    const whole = x => x.map((value, i) => given(i) ? pad.x[i] : value);
    const error = x => Panels.sum(x.map((value, i) => (value - pad.x[i]) ** 2)) / (784 - visible.length);
    const complete = Panels.soon(() => {
      c = Float32Array.from(visible, i => pad.x[i]);
      quarter.draw(pad.x.map((value, i) => given(i) ? value : 0.4));
      one = whole(baseline(c));
      single.draw(one);
      errors = [];
      answer();
    });
    const work = Panels.slices();
    function answer() {  // decodes only what is new
      while (pictures.length < k)
        pictures.push(Panels.picture(many, "", "small", `answer ${pictures.length + 1}`));
      pictures.forEach(({figure}, i) => { figure.hidden = i >= k; });
      work(Math.max(k - errors.length, 0) + 1, () => {
        const i = errors.length;
        if (i >= k) return compare();
        answers[i] = whole(decoder(Float32Array.of(...z.subarray(latent_dim * i, latent_dim * (i + 1)), ...c)));
        errors[i] = error(answers[i]);
        pictures[i].draw(answers[i]);
      });
    }
    function compare() {
      // A drawing of the quarter alone has no original to compare with.
      const known = pad.x.some((value, i) => value && !given(i)), shown = errors.slice(0, k);
      const found = known ? shown.indexOf(Math.min(...shown)) : 0;
      pictures.forEach(({figure, say, name}, i) => {
        figure.classList.toggle("chosen", known && i === found);
        say(known && i < k ? fixed(errors[i], 3) : "");
        name(`answer ${i + 1}${known && i < k ? `, MSE ${fixed(errors[i], 3)}` : ""}`);
      });
      best.draw(answers[found]);
      single.say(known ? `BaselineNN: MSE ${fixed(error(one), 4)}` : "BaselineNN");
      best.say(known ? `CVAE, the best of ${k}: MSE ${fixed(shown[found], 4)}` : "CVAE, the first answer");
      if (!c.some(value => value)) say("The quarter is empty: nothing is given but that.");
      else if (!known) say("Draw the other three quarters, too, and there is an original to compare with.");
      else say(`MSE of the unseen pixels: BaselineNN ${fixed(error(one), 4)}, the best of ${k} (number ${found + 1}) `
               + `${fixed(shown[found], 4)}.`);
    }
    pad.set(digits.images.slice(6 * 784, 7 * 784));
    complete();
  },
});
