"use strict";
// Sections 1 and 3: one digit goes through two encoders. A point lands in the autoencoder's plane, an ellipse in the
// VAE's; beside each plane is what its decoder makes of it.

Panels.define("planes", {
  title: "Two planes",
  predict: "Choose a digit, or draw one: two numbers are all that a decoder gets. Will it come back as the same digit, "
    + "and what comes back from a place where no digit lies?",
  weights: ["digits", "planes", "ae", "vae_plane"],
  async build(root, {digits, planes, ae, vae_plane}) {
    const {clamp, fixed, element} = Panels, SIZE = 660;
    const sheet = new Image();  // the test images that the dots stand for
    sheet.src = `data:image/png;base64,${planes.sheet}`;
    await sheet.decode();

    const top = Panels.row(root, "input");
    const pad = Panels.sketch(top, "the digit: draw here", x => { select(-1); encode(x); });
    const side = element(top, "div", {class: "beside"});
    const select = Panels.digits(side, digits, 4, x => { pad.set(x); encode(x); });
    Panels.slider(side, "zoom", {min: -2, max: 5, step: 0.5, value: 0, show: zoom => `${fixed(2 ** zoom, 2)} ×`},
                  value => all.forEach(plane => plane.zoom(value)));
    const say = Panels.status(side);

    const halves = element(root, "div", {class: "halves"});
    const all = [
      make("autoencoder", planes.ae, ae, x => ({mu: ae.encoder(x)})),
      make("variational autoencoder", planes.vae, vae_plane, x => Panels.encode(vae_plane, x)),
    ];

    function make(title, {codes, extent: [left, right, bottom, up]}, {decoder}, encoder) {
      const half = element(halves, "div"), middle = [(left + right) / 2, (up + bottom) / 2];
      const map = Panels.picture(half, `${title}: drag the point`, "plane",
                                 `the plane of the ${title}. Arrow keys move z`);
      const results = Panels.row(half, "results"), image = Panels.picture(results, "decoded", "medium");
      const near = Panels.picture(results, "the nearest dot", "medium");
      const dots = document.createElement("canvas");
      let z = [0, 0], sigma = null, center = middle, scale = 1, dot = 0, whose;

      const at = ([a, b]) => [SIZE * (0.5 + scale * (a - center[0]) / (right - left)),
                              SIZE * (0.5 - scale * (b - center[1]) / (up - bottom))];
      const from = (u, v) => [center[0] + (u - 0.5) * (right - left) / scale,
                              center[1] + (0.5 - v) * (up - bottom) / scale];
      const nearest = place => {  // the dot that is nearest on the screen
        const [x, y] = at(place);
        let best = Infinity, found = 0;
        for (let i = 0; i < codes.length / 2; i++) {
          const [a, b] = at([codes[2 * i], codes[2 * i + 1]]), distance = (a - x) ** 2 + (b - y) ** 2;
          if (distance < best) [best, found] = [distance, i];
        }
        return found;
      };

      function paintDots() {
        dots.width = dots.height = SIZE;
        const context = dots.getContext("2d"), radius = 3 * Math.max(1, Math.sqrt(scale));
        context.lineWidth = 0.7;
        context.strokeStyle = "#0009";  // an edge: light colours are seen on white, too
        for (let i = 0; i < codes.length / 2; i++) {
          const [x, y] = at([codes[2 * i], codes[2 * i + 1]]);
          if (x < -9 || x > SIZE + 9 || y < -9 || y > SIZE + 9) continue;
          context.fillStyle = Panels.DIGIT_COLORS[planes.labels[i]];
          context.beginPath();
          context.arc(x, y, radius, 0, 2 * Math.PI);
          context.fill();
          context.stroke();
        }
        const median = numbers => numbers.sort((a, b) => a - b)[numbers.length >> 1];
        [context.font, context.textAlign, context.textBaseline] = ["bold 34px sans-serif", "center", "middle"];
        [context.lineWidth, context.strokeStyle, context.lineJoin] = [7, "#fff", "round"];
        const places = [];
        for (let y = 0; y < 10; y++) {  // a digit's number at the median of its dots, or beside another number there
          const own = [...planes.labels.keys()].filter(i => planes.labels[i] === y);
          const place = at([median(own.map(i => codes[2 * i])), median(own.map(i => codes[2 * i + 1]))]);
          while (places.some(other => Math.hypot(place[0] - other[0], place[1] - other[1]) < 28)) place[0] += 4;
          places.push(place);
          context.fillStyle = "#000";
          context.strokeText(y, ...place);
          context.fillText(y, ...place);
        }
        if (title === "autoencoder") return;
        [context.strokeStyle, context.lineWidth] = ["#555", 2];
        for (const radius of [1, 2, 3]) ellipse(context, [0, 0], [radius, radius]);  // of the prior
      }

      function ellipse(context, place, [a, b]) {
        context.beginPath();
        const wide = SIZE * scale * a / (right - left), high = SIZE * scale * b / (up - bottom);
        context.ellipse(...at(place), wide, high, 0, 0, 2 * Math.PI);
        context.stroke();
      }

      const paintMap = Panels.soon(() => {
        map.canvas.width = map.canvas.height = SIZE;
        const context = map.canvas.getContext("2d");
        context.drawImage(dots, 0, 0);
        const mark = (place, radius) => {  // a ring that is dark and light: it is seen on any dot
          for (const [color, width] of [["#fff", 9], ["#000", 4]]) {
            [context.strokeStyle, context.lineWidth] = [color, width];
            context.beginPath();
            context.arc(...at(place).map(value => clamp(value, 12, SIZE - 12)), radius, 0, 2 * Math.PI);
            context.stroke();
          }
        };
        const [x, y] = at(z), [a, b] = at([codes[2 * dot], codes[2 * dot + 1]]);
        if (Math.hypot(x - a, y - b) > 20) mark([codes[2 * dot], codes[2 * dot + 1]], 8);
        mark(z, 18);
        if (sigma) for (const [color, width] of [["#fff", 7], ["#d00", 4]]) {
          [context.strokeStyle, context.lineWidth] = [color, width];
          ellipse(context, z, sigma.map(value => 2 * value));
        }
        const picture = near.canvas.getContext("2d", {willReadFrequently: true});
        picture.drawImage(sheet, 28 * (dot % 50), 28 * Math.floor(dot / 50), 28, 28, 0, 0, 28, 28);
        near.say(`the dot ${whose}, label\u00a0${planes.labels[dot]}`);
      });

      const decode = Panels.soon(() => {
        image.draw(decoder(Float32Array.from(z)));
        describe();
        speak();
      });
      const describe = () => {
        const [x, y] = at(z), outside = x < 0 || x > SIZE || y < 0 || y > SIZE;
        const numbers = z.map(value => fixed(value, 1)).join(", ");
        image.say(`decoded from z = (${numbers})${outside ? ", outside the frame" : ""}`);
      };
      const move = (place, spread = null) => {
        [z, sigma] = [place, spread];
        [dot, whose] = [nearest(z), "nearest to z"];
        paintMap();
        decode();
      };
      const look = () => {  // enlarged, the frame follows the point
        center = scale > 1 ? z : middle;
        paintDots();
        paintMap();
      };

      Panels.drag(map.canvas, (u, v) => move(from(clamp(u, 0, 1), clamp(v, 0, 1))), (right, down) => {
        move(from(...at(z).map((value, k) => value / SIZE + 0.02 * (k ? down : right))));
        if (scale > 1) look();
      }, {}, () => [at(z).map(value => clamp(value / SIZE, 0, 1))]);
      map.canvas.addEventListener("pointermove", event => {  // the pointer asks for dots without moving the point
        if (event.buttons) return;
        const box = map.canvas.getBoundingClientRect();
        dot = nearest(from((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height));
        whose = "under the pointer";
        paintMap();
      });
      Panels.button(results, "send this dot's digit through both", () => {
        const context = near.canvas.getContext("2d"), {data} = context.getImageData(0, 0, 28, 28);
        const x = Float32Array.from({length: 784}, (_, i) => data[4 * i] / 255);
        select(-1);
        pad.set(x);
        encode(x);
      });
      return {
        encode: x => {
          const {mu, sigma: spread} = encoder(x);
          move([...mu], spread && [...spread]);
          if (scale > 1) look();
        },
        zoom: value => { scale = 2 ** value; look(); describe(); },
        look,
        words: () => `z = (${z.map(value => fixed(value, 1)).join(", ")})`
          + (sigma ? `, sigma = (${sigma.map(value => fixed(value, 2)).join(", ")})` : ""),
      };
    }

    function speak() { say(all.map((plane, i) => `${i ? "VAE" : "Autoencoder"}: ${plane.words()}`).join(". ") + "."); }
    function encode(x) { all.forEach(plane => plane.encode(x)); }

    const first = digits.images.slice(4 * 784, 5 * 784);
    pad.set(first);
    encode(first);
    all.forEach(plane => plane.look());
    element(root, "p", {class: "status"}, "2,000 test digits, each where the encoder puts it, coloured by its label, "
      + "which neither network has seen. The second plane is that of section 3's network. Circles: its prior, with "
      + "39\u00a0%, 86\u00a0% and 99\u00a0% of what N(0, I) draws. The red ellipse: two sigma. Zoom in to see it.");
  },
});
