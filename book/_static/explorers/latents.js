/* The latent explorer: decoders of trained models, run in the page, and a slider for each active latent.
 *
 * A decoder is a safetensors file as book/edition/explorers/decoders.py describes it, in base64 within a script that calls
 * `Explorers.latents.receive`. It is loaded when the reader asks for it.
 */
Explorers.latents = (() => {
  "use strict";

  const folder = new URL("files/", document.currentScript.src);
  const awaited = {};
  const ARRAYS = { F32: Float32Array, I8: Int8Array };

  /** A decoder from the bytes of its file: `image`, `starts`, `decode(z)` and `pixels(z)`. */
  function read({ buffer }) {
    const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
    const about = JSON.parse(header.__metadata__.decoder);
    const tensor = (name) => {
      const { dtype, data_offsets: [from, to] } = header[name];
      return new ARRAYS[dtype](buffer.slice(start + from, start + to));
    };
    const factor = (name) => ({ values: tensor(name), scale: tensor(`${name}.scale`) });
    const layers = [{ factors: [{ values: tensor("0.weight") }], bias: tensor("0.bias") }];
    for (let i = 1; header[`${i}.bias`]; i++)
      layers.push({ factors: [factor(`${i}.down`), factor(`${i}.up`)], bias: tensor(`${i}.bias`) });

    function product(h, { values, scale }) {
      const columns = h.length;
      const result = new Float32Array(values.length / columns);
      for (let i = 0; i < result.length; i++) {
        let sum = 0;
        for (let j = 0, at = i * columns; j < columns; j++, at++) sum += values[at] * h[j];
        result[i] = scale ? scale[i] * sum : sum;
      }
      return result;
    }

    /** Logits, or means under a Gaussian likelihood, of the latents z. */
    const decode = (z) =>
      layers.reduce(
        (h, { factors, bias }, i) => factors.reduce(product, i ? h.map(Math.tanh) : h).map((value, k) => value + bias[k]),
        Float32Array.from(z),
      );

    const mean = about.likelihood === "bernoulli" ? (logit) => 1 / (1 + Math.exp(-logit)) : (value) => value;
    const [count, size] = header.starts.shape;
    const starts = Array.from({ length: count }, (_, i) => tensor("starts").slice(i * size, (i + 1) * size));
    return { image: about.image, starts, decode, pixels: (z) => decode(z).map(mean) };
  }

  const fromBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  /** Called by the script of a decoder. */
  const receive = (key, text) => awaited[key]?.resolve(text);

  /** The decoder of a key: loads its script, once. */
  function load(key) {
    if (!awaited[key]) {
      const wait = (awaited[key] = {});
      wait.decoder = new Promise((resolve, reject) => {
        const script = document.createElement("script");
        wait.resolve = (text) => (resolve(text), script.remove());
        script.addEventListener("error", () => {
          delete awaited[key];
          script.remove();
          reject(new Error("a file could not be loaded"));
        });
        script.src = new URL(`${key}.js`, folder);
        document.head.append(script);
      }).then((text) => read(fromBase64(text)));
    }
    return awaited[key].decoder;
  }

  return { receive, load, fromBase64 };
})();

Explorers.define("latents", (explorer, data) => {
  "use strict";
  const { fixed } = Explorers;
  const megabytes = (bytes) => `${fixed(bytes / 1e6, 1)} MB`;
  const sides = data.sides.map((side) => ({ ...side, picture: null }));
  const stem = (file) => file.replace(/^.*\/|\.safetensors$/g, "");
  explorer.values = { values: sides };
  let original = null;
  let start = null;
  let moved = null;

  // --- pictures

  /** Means of pixels, channel after channel, as an image that can be drawn. */
  function imageOf(pixels, [channels, height, width]) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const image = new ImageData(width, height);
    for (let i = 0; i < width * height; i++)
      for (let c = 0; c < 4; c++)
        image.data[4 * i + c] = c === 3 ? 255 : Math.round(255 * pixels[(channels === 3 ? c : 0) * width * height + i]);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  const names = () => ["the image", ...sides.map((side) => side.label)];
  const strip = explorer.panel({
    title: "The image, and what each model draws",
    wide: true,
    ratio: 0.9 * (1 + sides.length),
    draw: (pen) => {
      const { context } = pen;
      const [gap, above] = [8, 1.6 * pen.size];
      const columns = 1 + sides.length;
      const side = Math.min((pen.width - gap * (columns - 1)) / columns, pen.height - above);
      const left = (pen.width - columns * side - (columns - 1) * gap) / 2;
      context.imageSmoothingEnabled = false;
      [original, ...sides.map(({ picture }) => picture)].forEach((picture, i) => {
        const x = left + i * (side + gap);
        pen.text(names()[i], x + side / 2, above / 2, { bold: true });
        if (picture) context.drawImage(picture, x, above, side, side);
        context.strokeStyle = pen.colour("grey");
        context.lineWidth = 1;
        context.strokeRect(x + 0.5, above + 0.5, side - 1, side - 1);
        if (!picture) pen.text("not loaded", x + side / 2, above + side / 2, { colour: "grey" });
      });
    },
  });

  /** A picture in words, for readers who cannot see it. */
  function seen(pixels, [channels, height, width]) {
    let [sum, across, down] = [0, 0, 0];
    pixels.forEach((value, i) => {
      const at = i % (width * height);
      sum += value;
      across += value * (at % width);
      down += value * Math.floor(at / width);
    });
    const area = fixed(sum / channels, 0);
    return `of ${area} light pixels, centred on column ${fixed(across / sum, 0)}, row ${fixed(down / sum, 0)}`;
  }

  // --- sliders, once the decoders are there

  function set(side) {
    side.z = [...side.decoder.starts[start.value]];
    for (const one of side.sliders) {
      one.control.value = side.z[one.latent];
      one.shown = one.control.value; // the nearest that the slider has; the exact value is kept in z
    }
  }

  function offer(side) {
    const title = document.createElement("h3");
    title.className = "explorer-title";
    title.textContent = side.title;
    const box = document.createElement("div");
    box.className = "explorer-controls";
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", side.title);
    box.append(title);
    const bar = explorer.bar;
    explorer.bar = box; // controls are added here
    for (const one of side.sliders)
      one.control = explorer.slider({
        name: `${side.label}-z${one.latent + 1}`,
        label: `z${one.latent + 1}`,
        hint: `${one.factor}, ${fixed(one.nats, 1)} nats`,
        min: one.low,
        max: one.high,
        step: (one.high - one.low) / 100,
        value: one.low,
        format: (value) => fixed(value, 2),
      });
    if (!side.sliders.length) box.append("No latent of this model is active.");
    explorer.bar = bar;
    return box;
  }

  function show() {
    const boxes = sides.map(offer);
    start = explorer.choice({
      name: "start",
      label: "start from",
      options: data.starts.map(({ name }, value) => ({ label: name || "the image in the middle", value })),
      value: data.start,
    });
    start.input.addEventListener("input", reset);
    explorer.buttons("Sliders", [{ label: "Back to the start", action: reset }]);
    const row = document.createElement("div");
    row.className = "explorer-sides";
    row.append(...boxes);
    explorer.grid.after(row);
    reset();
  }

  function reset() {
    moved = null;
    sides.forEach(set);
  }

  // --- loading

  const total = sides.reduce((sum, { bytes }) => sum + bytes, 0);
  const row = explorer.buttons("Loading", [
    {
      label: `Load the decoder${sides.length > 1 ? "s" : ""} (${megabytes(total)})`,
      action: async (button) => {
        button.disabled = true;
        explorer.describe("Loading.");
        try {
          for (const side of sides) side.decoder = await Explorers.latents.load(stem(side.file));
          row.remove();
          show();
          Object.values(explorer.controls)[0]?.input.focus({ preventScroll: true });
        } catch (error) {
          button.disabled = false;
          for (const side of sides) side.decoder = null;
          explorer.describe(`The decoders are not available: ${error.message}.`);
          console.error(error);
        }
        explorer.changed();
      },
    },
  ]);

  explorer.update = () => {
    if (!sides.every(({ decoder }) => decoder) || !start) {
      strip.describe("nothing is loaded yet");
      if (!row.firstChild.disabled && !explorer.pending)
        explorer.describe(`No decoder is loaded yet; the files have ${megabytes(total)}.`);
      return;
    }
    const from = data.starts[start.value];
    original = imageOf([...Explorers.latents.fromBase64(from.image)].map((value) => value / 255), sides[0].decoder.image);
    const words = sides.map((side) => {
      for (const one of side.sliders)
        if (one.control.value !== one.shown) {
          one.shown = side.z[one.latent] = one.control.value;
          moved = { side, ...one };
        }
      side.pixels = side.decoder.pixels(side.z);
      side.picture = imageOf(side.pixels, side.decoder.image);
      return `${side.label} draws a shape ${seen(side.pixels, side.decoder.image)}`;
    });
    strip.describe(`started from ${from.name || "the image in the middle"}. ${words.join(". ")}`);
    const last = moved
      ? `${moved.side.label}: z${moved.latent + 1}, which is most informative about ${moved.factor}, is ${fixed(moved.shown)}; it was ` +
        `${fixed(moved.side.decoder.starts[start.value][moved.latent])} at the start. `
      : `Both at the start: ${from.name || "the image in the middle"}, as each model encodes it. `;
    explorer.describe(`${last}${words.join(". ")}.`);
  };
});
