"use strict";
// Sections 6.1 and 6.5: an image goes through the encoder, each of its 64 z is replaced by the nearest code, a word,
// and the decoder sees only these. Other words can be put into their places.

Panels.define("words", {
  title: "A photograph in 64 words",
  predict: "If you put another word into one place, does only that place's square of 4 × 4 pixels change? And how much "
    + "changes if you take the second nearest code instead of the nearest?",
  weights: ["vqvae_encoder", "vqvae_decoder"],
  build(root, {vqvae_encoder: {encode}, vqvae_decoder}) {
    const {element, row, picture, button, choice, status, tap, soon, clamp, fixed, sum, vocabulary} = Panels;
    const {photographs, codebook} = vqvae_decoder, words = vocabulary(vqvae_decoder), size = codebook.length / words.n;
    const photograph = i => photographs.subarray(3072 * i, 3072 * (i + 1));
    let z, before = [], list = [], cell = 27;

    const select = choice(root, "a photograph of the test set", [...Array(photographs.length / 3072).keys()].map(i =>
      ({name: `photograph ${i + 1}`, image: photograph(i)})), 0, i => see(photograph(i)));
    const holder = element(root, "label", {class: "file"}, "or a photograph of your own (it stays on your machine): ");
    const file = element(holder, "input", {type: "file", accept: "image/*"});
    file.addEventListener("change", () => { if (file.files[0]) own(file.files[0]); });

    const pictures = row(root), original = picture(pictures, "the image, 32 × 32 pixels", "quarter");
    const grid = picture(pictures, "its 64 words: choose one", "quarter",
                         "the 64 words in the colours that they decode to: arrow keys choose a place");
    const decoded = picture(pictures, "what the decoder makes of them", "quarter");
    const difference = picture(pictures, "what your changes changed, four times as bright", "quarter");
    const cursors = [cursor(grid.canvas), cursor(decoded.canvas)];
    const say = status(root), controls = row(root, "controls");
    button(controls, "take back all changes", () => { list = [...before]; show(); });

    const near = element(root, "fieldset", {class: "choice near"});
    element(near, "legend", {}, "the codes nearest to z in this place, with their distances");
    const nearest = Array.from({length: 8}, (_, i) => button(near, "", () => put(Number(nearest[i].dataset.word))));
    for (const made of nearest) [made.swatch, made.words] = [element(made, "i"), element(made, "span")];

    const all = picture(root, "", "palette",
                        "all words: arrow keys put another one into the chosen place");
    const aim = cursor(all.canvas);
    let columns, order = [];

    function cursor(canvas) {  // a mark on a canvas; returns move(place, columns, rows), which returns the mark
      const frame = element(canvas.parentNode, "div", {class: "frame"});
      canvas.before(frame);
      frame.append(canvas);
      const mark = element(frame, "div", {class: "cursor"});
      return (place, columns, rows) => {
        Object.assign(mark.style, {
          left: `${100 * (place % columns) / columns}%`, top: `${100 * Math.floor(place / columns) / rows}%`,
          width: `${100 / columns}%`, height: `${100 / rows}%`});
        return mark;
      };
    }

    function reveal(mark) {  // on a phone the palette scrolls, so that the pictures stay in view
      const {figure} = all, {offsetTop: top, offsetHeight: high} = mark;
      if (top < figure.scrollTop || top + 4 * high > figure.scrollTop + figure.clientHeight)  // the caption lies there
        figure.scrollTop = top - figure.clientHeight / 2;
    }

    // The palette: dark words in the upper rows, and each row by its hues.
    function arrange() {
      const hue = ([r, g, b]) => Math.atan2(Math.sqrt(3) * (g - b), 2 * r - g - b), by = f => (a, b) => f(a) - f(b);
      const fit = root.clientWidth < 520 ? 16 : 32;
      if (fit === columns) return;
      columns = fit;
      all.say(`all ${words.n} words, by brightness and hue${fit === 16 ? " (scroll)" : ""}`);
      order = [...Array(words.n).keys()].sort(by(word => sum(words.rgb(word))));
      for (let i = 0; i < words.n; i += columns)
        order.splice(i, columns, ...order.slice(i, i + columns).sort(by(word => hue(words.rgb(word)))));
      words.paint(all.canvas, order, columns);
      if (z) show();
    }

    function distances(place) {  // from z in this place to each code
      const here = new Float32Array(size), far = new Float32Array(words.n);
      for (let i = 0; i < size; i++) here[i] = z[64 * i + place];
      for (let word = 0; word < words.n; word++) {
        let square = 0;
        for (let i = 0, at = size * word; i < size; i++) square += (here[i] - codebook[at + i]) ** 2;
        far[word] = Math.sqrt(square);
      }
      return far;
    }

    function see(x) {
      original.draw(x);
      setTimeout(() => {  // a task of its own
        z = encode(x.map(value => value - 0.5));
        before = Array.from({length: 64}, (_, place) => {
          const far = distances(place);
          return far.indexOf(Math.min(...far));
        });
        list = [...before];
        show();
      });
    }

    async function own(chosen) {  // its largest square in the middle, as 32 x 32 pixels
      try {
        const image = await createImageBitmap(chosen), side = Math.min(image.width, image.height);
        const small = await createImageBitmap(image, (image.width - side) / 2, (image.height - side) / 2, side, side,
                                              {resizeWidth: 32, resizeHeight: 32, resizeQuality: "high"});
        const canvas = Object.assign(document.createElement("canvas"), {width: 32, height: 32});
        canvas.getContext("2d").drawImage(small, 0, 0);
        const {data} = canvas.getContext("2d").getImageData(0, 0, 32, 32);
        select(-1);
        see(Float32Array.from({length: 3072}, (_, i) => data[4 * (i % 1024) + Math.floor(i / 1024)] / 255));
      } catch {
        say("This file is not an image that the browser can read.");
      }
    }

    const show = soon(() => {
      words.paint(grid.canvas, list, 8);
      const x = words.decode(list), old = words.decode(before);
      decoded.draw(x);
      difference.draw(x.map((value, i) => 4 * Math.abs(clamp(value, 0, 1) - clamp(old[i], 0, 1))));
      cursors.forEach(move => move(cell, 8, 8));
      reveal(aim(order.indexOf(list[cell]), columns, words.n / columns));
      const far = distances(cell), ranked = [...far.keys()].sort((a, b) => far[a] - far[b]);
      nearest.forEach((made, i) => {
        made.dataset.word = ranked[i];
        made.swatch.style.background = words.css(ranked[i]);
        made.words.textContent = fixed(far[ranked[i]]);
        made.setAttribute("aria-label", `word ${ranked[i]}, distance ${fixed(far[ranked[i]])}`);
        made.setAttribute("aria-pressed", ranked[i] === list[cell]);
      });
      const changed = list.filter((word, place) => word !== before[place]).length;
      say(`Row ${(cell >> 3) + 1}, column ${cell % 8 + 1}: word ${list[cell]}, code ${ranked.indexOf(list[cell]) + 1} `
        + `of ${words.n} by distance from z. ${changed || "No"} word${changed === 1 ? "" : "s"} changed.`);
    });

    function put(word) { list[cell] = word; show(); }
    function choose(place) { cell = place; show(); }
    const stay = (value, n) => clamp(value, 0, n - 1);
    tap(grid.canvas, choose, (right, down) => choose(stay((cell >> 3) + down, 8) * 8 + stay(cell % 8 + right, 8)));
    tap(all.canvas, place => put(order[place]), (right, down) => {
      const at = order.indexOf(list[cell]), line = stay(Math.floor(at / columns) + down, words.n / columns);
      put(order[line * columns + stay(at % columns + right, columns)]);
    });
    new ResizeObserver(arrange).observe(root);
    see(photograph(0));
    arrange();
  },
});
