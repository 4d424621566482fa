"use strict";
// Section 6.7: the prior writes, word by word. Each step shows the likeliest next words; one can overrule it.

Panels.define("prior", {
  title: "Word by word",
  predict: "The upper half is a photograph's; press play, and the prior writes the rest. Does it find the photograph's "
    + "own lower half? And if it takes nearly only the likeliest words (temperature 0.1), are its images better?",
  weights: ["vqvae_decoder", "prior"],
  build(root, {vqvae_decoder, prior}) {
    const {element, row, picture, slider, button, choice, status, tap, soon, clamp, fixed, random, softmax, layers, sum,
           vocabulary} = Panels;
    const {photographs} = vqvae_decoder, words = vocabulary(vqvae_decoder), logits = writer(prior);
    const photograph = i => photographs.subarray(3072 * i, 3072 * (i + 1)), LENGTH = 64, SHOWN = 20;
    let chosen = 3, kept = 32, list = [], temperature = 1, seed = 1, luck = [], timer = 0;

    choice(root, "the upper half of", ["nothing", ...[...Array(photographs.length / 3072).keys()].map(i =>
      ({name: `photograph ${i + 1}`, image: photograph(i)}))], chosen + 1, i => { chosen = i - 1; start(); });
    const pictures = row(root);
    const grid = picture(pictures, "the words so far: choose one to go back to it", "third",
                         "the words so far: the arrow keys left and up go back");
    const decoded = picture(pictures, "decoded", "third"), original = picture(pictures, "the photograph", "third");
    const controls = row(root, "controls");
    button(controls, "one word", () => { pause(); write(); });
    const player = button(controls, "play", () => { if (timer) pause(); else play(); });
    button(controls, "back", () => back(list.length - 1));
    button(controls, "again, with other luck", () => { seed++; start(); });
    slider(controls, "temperature", {min: 0.1, max: 2, step: 0.1, value: 1, show: shown => fixed(shown, 1)},
           value => { temperature = value; show(); });
    const say = status(root);
    const likely = element(root, "fieldset", {class: "choice near"});
    element(likely, "legend", {}, `the ${SHOWN} likeliest next words: take one yourself, or let the prior draw`);
    const options = Array.from({length: SHOWN}, (_, i) => button(likely, "", () => {
      pause();
      put(Number(options[i].dataset.word));
    }));
    for (const made of options) [made.swatch, made.words] = [element(made, "i"), element(made, "span")];

    // vqvae.Prior.forward, but a function that remembers the words before: one more word costs one place only.
    // Returns logits(words), those of the word after them.
    function writer({token, place, blocks, norm, head}) {
      const width = norm.weight.length, START = token.length / width - 1, found = [], seen = [];
      const pasts = blocks.map(() => ({keys: [], values: []}));
      return before => {
        const input = [START, ...before];
        let t = 0;
        while (t < seen.length && seen[t] === input[t]) t++;  // what it remembers, and is still so
        for (const past of pasts) past.keys.length = past.values.length = t;
        seen.length = found.length = t;
        for (; t < input.length; t++) {
          let x = Float32Array.from({length: width}, (_, i) => token[width * input[t] + i] + place[width * t + i]);
          blocks.forEach((block, i) => { [x] = layers.TransformerEncoderLayer(x, [1, width], block, pasts[i]); });
          seen.push(input[t]);
          found.push(layers.Linear(layers.LayerNorm(x, [1, width], norm)[0], [1, width], head)[0]);
        }
        return found[input.length - 1];
      };
    }

    function next() {  // [word, probability], the likeliest first
      const scores = softmax([...logits(list)].map(value => value / temperature));
      return scores.map((score, word) => [word, score]).sort((a, b) => b[1] - a[1]);
    }

    function write() {  // each place has its luck, a number from 0 to 1, so that only the temperature counts
      if (list.length === LENGTH) return pause();
      let left = luck[list.length];
      const ranked = next(), drawn = ranked.find(([, score]) => (left -= score) < 0) || ranked[0];
      put(drawn[0]);
    }

    function put(word) {
      if (list.length < LENGTH) list.push(word);
      show();
    }

    function back(n) {
      pause();
      list.length = clamp(n, 0, list.length);
      show();
    }

    function start() {
      pause();
      const uniform = random(seed);
      luck = Array.from({length: LENGTH}, uniform);
      kept = chosen < 0 ? 0 : LENGTH / 2;
      list = chosen < 0 ? [] : vqvae_decoder.words[chosen].slice(0, kept);
      original.figure.hidden = chosen < 0;
      if (chosen >= 0) original.draw(photograph(chosen));
      show();
    }

    function play() {
      if (list.length === LENGTH) start();
      player.textContent = "pause";
      timer = setInterval(() => {
        write();
        if (list.length === LENGTH) pause();
      }, 100);
    }

    function pause() {
      clearInterval(timer);
      timer = 0;
      player.textContent = "play";
    }

    const show = soon(() => {
      const whole = [...list, ...Array(LENGTH - list.length).fill(null)];
      words.paint(grid.canvas, whole, 8);
      decoded.draw(words.decode(whole));
      if (list.length < LENGTH) {  // what is not written yet is not shown
        const context = decoded.canvas.getContext("2d"), [line, column] = [list.length >> 3, list.length % 8];
        context.clearRect(4 * column, 4 * line, 32, 4);
        context.clearRect(0, 4 * line + 4, 32, 32);
      }
      weigh();
    });

    const weigh = soon(() => {  // a task of its own
      likely.style.visibility = list.length === LENGTH ? "hidden" : "visible";
      if (list.length === LENGTH) return say("All 64 words are written.");
      const ranked = next();
      options.forEach((made, i) => {
        const [word, score] = ranked[i], text = `${(100 * score).toFixed(1)} %`;
        made.dataset.word = word;
        made.swatch.style.background = words.css(word);
        made.words.textContent = text;
        made.setAttribute("aria-label", `word ${word}, ${text}`);
      });
      const bits = -sum(ranked.map(([, score]) => score && score * Math.log2(score)));
      say(`Word ${list.length + 1} of 64: as uncertain as ${Math.round(2 ** bits)} words that are equally likely; the `
        + `${SHOWN} likeliest have ${Math.round(100 * sum(ranked.slice(0, SHOWN).map(([, score]) => score)))}\u00a0%.`);
    });

    tap(grid.canvas, back, (right, down) => { if (right + down < 0) back(list.length + right + 8 * down); });
    start();
  },
});
