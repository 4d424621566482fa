"use strict";
// Section 6.4: recorded runs, update by update. Behind the slider they are not shown.

Panels.define("runaway", {
  title: "The runaway",
  predict: "Now the script's own recipe (6.5), to the end. After 1,000 updates z is "
    + "about twenty times as long without the commitment loss as with it, and yet the error still falls. How does that "
    + "go on? Press play.",
  weights: ["runaway"],
  build(root, {runaway: {update, runs}}) {
    const {element, row, slider, button, choice, status, fixed, soon, clamp} = Panels;
    const RUNS = [["push", "λ = 0.25"], ["push-lambda-0", "λ = 0"],
                  ["push-without-outward", "λ = 0, without the outward part"]];
    // An axis: what is drawn of an entry (a line, or a line and its band), its ends, and its labels.
    const power = exponent => exponent < 6 ? (10 ** exponent).toLocaleString("en") : `${10 ** (exponent - 6)} million`;
    const CHARTS = [
      {name: "error while training", of: h => h.train_reconstruction.map(value => [value]), low: 0.04, high: 60,
       log: true, ticks: [[0.1, "0.1"], [1, "1"], [10, "10"]]},
      {name: "length of z: median, and 98 % of all", of: h => h.test_z_norm, low: 0.2, high: 1e8, log: true,
       ticks: [0, 2, 4, 6, 8].map(exponent => [10 ** exponent, power(exponent)])},
      {name: "perplexity of the codes", of: h => h.test_perplexity.map(value => [value]), low: 0, high: 520,
       ticks: [[0, "0"], [256, "256"], [512, "512"]]}];
    const START = 9;
    let now = START, seed = 0, timer = 0;

    const charts = row(root);
    for (const chart of CHARTS) {
      const figure = element(charts, "figure", {class: "history"});
      element(figure, "figcaption", {}, chart.name);
      chart.drawing = element(figure, "div", {class: "drawing", "aria-hidden": "true"});
    }
    const setUpdate = slider(root, "update", {min: 0, max: update.length - 1, step: 1, value: START,
                                              show: i => update[i].toLocaleString("en")},
                             i => { pause(); now = i; show(); });
    const controls = row(root, "controls");
    const player = button(controls, "play", () => { if (timer) pause(); else play(); });
    choice(controls, "seed", ["0", "1", "2"], 0, i => { seed = i; show(); });
    const table = element(root, "table", {class: "values"}), say = status(root);
    element(root, "p", {class: "note"}, "The error is the mean over the last 100 batches; lengths and perplexity are "
      + "those of test images. The bands hold 98 % of all z.");
    const titles = element(element(table, "thead"), "tr"), lines = element(table, "tbody");
    for (const title of ["run", "error", "median length of z", "perplexity"])
      element(titles, "th", {scope: "col"}, title);
    const cells = RUNS.map(([, name], i) => {
      const line = element(lines, "tr");
      element(element(line, "th", {scope: "row"}), "span", {class: `key rule-${i}`}, name);
      return [0, 1, 2].map(() => element(line, "td"));
    });

    const short = value => value < 10 ? fixed(value, value < 1 ? 3 : 1) : Math.round(value).toLocaleString("en");

    function paint({drawing, of, low, high, log, ticks}) {
      const left = 4.13 * parseFloat(getComputedStyle(drawing).fontSize);  // for the longest label
      const width = drawing.clientWidth, bottom = drawing.clientHeight - 22, scale = log ? Math.log : value => value;
      const share = value => (scale(clamp(value, low, high)) - scale(low)) / (scale(high) - scale(low));
      const y = value => bottom - (bottom - 8) * share(value);
      const x = i => left + (width - left - 6) * i / (update.length - 1);
      const path = (entries, k) => entries.map((entry, i) => `${x(i).toFixed(1)} ${y(entry[k]).toFixed(1)}`);
      let inner = `<path class="axis" d="M${left} 8V${bottom}H${width - 6}"/>`;
      for (const [value, text] of ticks)
        inner += `<path class="tick" d="M${left} ${y(value)}H${width - 6}"/><text x="${left - 5}" y="${y(value) + 4}" `
          + `text-anchor="end">${text}</text>`;
      inner += `<text x="${left}" y="${bottom + 16}">${update[0]}</text><text x="${width - 6}" y="${bottom + 16}" `
        + `text-anchor="end">${update.at(-1).toLocaleString("en")} updates</text>`
        + `<path class="tick" d="M${x(now)} 8V${bottom}"/>`;
      RUNS.forEach(([run], i) => {
        const entries = of(runs[run][seed]).slice(0, now + 1), middle = entries[0].length >> 1;
        const band = middle ? [...path(entries, 0), ...path(entries, 2).reverse()] : [];
        if (middle) inner += `<path class="band rule-${i}" d="M${band.join("L")}Z"/>`;
        inner += `<path class="curve rule-${i}" d="M${path(entries, middle).join("L")}"/>`
          + `<circle class="rule-${i}" r="4" cx="${x(now).toFixed(1)}" cy="${y(entries[now][middle]).toFixed(1)}"/>`;
      });
      drawing.innerHTML = `<svg>${inner}</svg>`;
    }

    const show = soon(() => {
      CHARTS.forEach(paint);
      RUNS.forEach(([run], i) => {
        const h = runs[run][seed];
        [h.train_reconstruction[now], h.test_z_norm[now][1], h.test_perplexity[now]].forEach((value, k) => {
          cells[i][k].textContent = short(value);
        });
      });
      const [kept, lost] = RUNS.map(([run]) => short(runs[run][seed].train_reconstruction[now]));
      say(`Update ${update[now].toLocaleString("en")}: error ${kept} with the commitment loss, ${lost} without.`);
    });

    function play() {
      if (now === update.length - 1) now = 0;
      player.textContent = "pause";
      timer = setInterval(() => {
        setUpdate(++now);
        show();
        if (now === update.length - 1) pause();
      }, 120);
    }

    function pause() {
      clearInterval(timer);
      timer = 0;
      player.textContent = "play";
    }

    new ResizeObserver(show).observe(charts);
    show();
  },
});
