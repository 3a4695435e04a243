/* The latent explorer: two trained models side by side, with a slider for each active latent.
 *
 * Every model has a sheet of images that its decoder drew along each latent, within the data. Where there is a decoder
 * for the page too, a safetensors file as book/edition/explorers/decoders.py describes it, in base64 within a script that
 * calls `Explorers.latents.receive`, it is loaded when its model is chosen, and the sliders act together.
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
  const [height, width] = data.size;
  const FINE = 14; // positions of a slider from one recorded image to the next
  const END = FINE * (data.steps - 1);
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const sides = ["left", "right"].map((name) => ({ name, sliders: [], moved: null, decoder: null }));
  explorer.values = { values: sides };
  let original = null;
  let timer = null;

  // --- pictures

  function canvas(draw) {
    const made = Object.assign(document.createElement("canvas"), { width, height });
    draw(made.getContext("2d", { willReadFrequently: true }));
    return made;
  }

  /** An image of a model's sheet: for each start a row with image and reconstruction, then one for each latent. */
  const tile = ({ sheet, sliders }, row, column) =>
    canvas((context) => {
      const top = height * ((1 + sliders.length) * controls.start.value + row);
      context.drawImage(sheet, width * column, top, width, height, 0, 0, width, height);
    });

  /** Means of pixels, channel after channel. */
  const paint = (pixels, channels) =>
    canvas((context) => {
      const image = new ImageData(width, height);
      for (let i = 0; i < width * height; i++)
        for (let c = 0; c < 4; c++)
          image.data[4 * i + c] = c === 3 ? 255 : Math.round(255 * pixels[(channels === 3 ? c : 0) * width * height + i]);
      context.putImageData(image, 0, 0);
    });

  /** Amount of light, and where its centre is. */
  function measure(picture) {
    const { data: values } = picture.getContext("2d").getImageData(0, 0, width, height);
    let [area, x, y] = [0, 0, 0];
    for (let i = 0; i < width * height; i++) {
      const light = values[4 * i] / 255;
      area += light;
      x += light * (i % width);
      y += light * Math.floor(i / width);
    }
    return { area, x: x / area, y: y / area };
  }

  const signed = (value, digits) => (Number(value.toFixed(digits)) > 0 ? "+" : "") + fixed(value, digits);

  /** How the picture of a side differs from its start. */
  function change({ picture, origin }) {
    const now = measure(picture);
    if (!(now.area > 1 && origin.area > 1)) return ["no shape"];
    const [x, y] = ["x", "y"].map((axis) => `${axis} ${signed(now[axis] - origin[axis], 1)} px`);
    return [x, y, `area ${signed(100 * (now.area / origin.area - 1), 0)} %`];
  }

  const strip = explorer.panel({
    title: "The image, and what each model draws",
    wide: true,
    ratio: 1.95,
    draw: (pen) => {
      const { context } = pen;
      const [gap, line] = [8, 1.25 * pen.size];
      const side = Math.min((pen.width - 2 * gap) / 3, pen.height - 4.3 * line);
      const left = (pen.width - 3 * side - 2 * gap) / 2;
      const columns = [{ label: "image", picture: original }, ...sides.map((one) => ({ ...one, label: one.model.label }))];
      context.imageSmoothingEnabled = false;
      columns.forEach((column, i) => {
        const x = left + i * (side + gap);
        pen.text(column.label, x + side / 2, 0.55 * line, { bold: true });
        if (column.picture) context.drawImage(column.picture, x, 1.2 * line, side, side);
        context.strokeStyle = pen.colour("grey");
        context.lineWidth = 1;
        context.strokeRect(x + 0.5, 1.2 * line + 0.5, side - 1, side - 1);
        if (column.origin)
          change(column).forEach((text, row) => pen.text(text, x + side / 2, 1.2 * line + side + (row + 0.7) * line));
      });
    },
  });

  // --- the two models

  const row = document.createElement("div");
  row.className = "explorer-sides";
  explorer.grid.after(row);
  for (const side of sides) {
    side.box = document.createElement("div");
    side.box.className = "explorer-controls";
    side.box.setAttribute("role", "group");
    row.append(side.box);
  }

  /** Offer a model's sliders on a side; load its sheet, and its decoder if there is one. */
  function install(side) {
    const model = data.models[controls[side.name].value];
    if (side.model === model) return;
    side.sliders.forEach(({ name }) => delete explorer.controls[name]);
    Object.assign(side, { model, decoder: null, picture: null, origin: null });
    const title = document.createElement("h3");
    title.className = "explorer-title";
    title.textContent = model.title;
    side.box.replaceChildren(title);
    side.box.setAttribute("aria-label", model.title);
    const { bar } = explorer;
    explorer.bar = side.box; // controls are added here
    side.sliders = model.sliders.map((one, number) => {
      const name = `${side.name}-z${one.latent + 1}`;
      const latentAt = (position) => one.low + (position / END) * (one.high - one.low);
      const { label, hint } = one;
      const format = (position) => fixed(latentAt(position), 1);
      const control = explorer.slider({ name, label, hint, max: END, step: FINE, value: 0, format });
      control.input.addEventListener("input", () => move(side, number));
      return { ...one, name, control, latentAt };
    });
    explorer.bar = bar;
    if (!model.sheet) {
      const image = Object.assign(new Image(), { src: model.images });
      image.decode().then(() => {
        model.sheet = image;
        sides.filter((one) => one.model === model).forEach(reset);
        explorer.changed();
      });
    }
    if (model.file) use(side, model);
    reset(side);
  }

  async function use(side, model) {
    try {
      const decoder = await Explorers.latents.load(model.file.replace(/^.*\/|\.safetensors$/g, ""));
      if (side.model !== model) return;
      side.decoder = decoder;
      for (const { control } of side.sliders) control.input.step = 1;
      reset(side);
    } catch (error) {
      model.note = `The decoder is not available (${error.message}); the images are recorded`;
      console.warn(error);
    }
    explorer.changed();
  }

  function reset(side) {
    side.moved = null;
    const start = controls.start.value;
    side.z = side.decoder && [...side.decoder.starts[start]];
    side.sliders.forEach(({ control, latent, low, high, at }) => {
      control.value = side.z ? ((side.z[latent] - low) / (high - low)) * END : FINE * at[start];
    });
    render(side);
    side.origin = side.picture && measure(side.picture);
  }

  /** A slider was moved; without a decoder all others are at the start. */
  function move(side, number) {
    const { control, latent, latentAt } = side.sliders[number];
    if (side.decoder) side.z[latent] = latentAt(control.value);
    else if (side.moved !== number) {
      const wanted = control.value;
      reset(side);
      control.value = wanted;
    }
    side.moved = number;
  }

  function render(side) {
    const { model, moved, decoder } = side;
    if (decoder) {
      side.pixels = decoder.pixels(side.z);
      side.picture = paint(side.pixels, decoder.image[0]);
    } else if (model.sheet && moved === null) side.picture = tile(model, 0, 1);
    else if (model.sheet) side.picture = tile(model, 1 + moved, Math.round(side.sliders[moved].control.value / FINE));
  }

  // --- controls

  const labels = (beta) =>
    data.models.map(({ label }, value) => ({ label, value })).filter(({ value }) => data.models[value].beta === beta);
  const first = data.models[0].beta;
  const betas = [...new Set(data.models.map(({ beta }) => beta))];
  const controls = {
    beta: explorer.choice({ name: "beta", label: "β", options: betas.map((value) => ({ label: value, value })), value: first }),
    start: explorer.choice({
      name: "start",
      label: "start from",
      options: data.starts.map((label, value) => ({ label: label || "the image in the middle", value })),
      value: data.start,
    }),
  };
  sides.forEach(({ name }, i) => {
    const options = labels(first);
    controls[name] = explorer.choice({ name, label: `${name} model`, options, value: options[Math.min(i, options.length - 1)].value });
    controls[name].input.addEventListener("input", () => install(sides[i]));
  });
  controls.start.input.addEventListener("input", () => sides.forEach(reset));
  controls.beta.input.addEventListener("input", () => {
    const offered = labels(controls.beta.value);
    sides.forEach((side, i) => {
      const same = offered.find(({ label }) => label === side.model.label) ?? offered[Math.min(i, offered.length - 1)];
      controls[side.name].offer(offered, same.value);
      install(side);
    });
  });

  function stop() {
    clearInterval(timer);
    timer = null;
  }

  function back() {
    stop();
    sides.forEach(reset);
  }

  /** Move, in both models, the latent that encodes a factor best, from end to end, so that the factor grows. */
  function show(factor) {
    back();
    let part = calm.matches ? 1 : 0;
    const advance = () => {
      for (const side of sides) {
        if (!side.model.best[factor]) continue;
        const [number, grows] = side.model.best[factor];
        side.sliders[number].control.value = (grows ? part : 1 - part) * END;
        move(side, number);
      }
      explorer.changed();
      if (part >= 1) stop();
      part = Math.min(1, part + 1 / 28);
    };
    timer = calm.matches ? null : setInterval(advance, 80);
    advance();
  }
  explorer.stage.addEventListener("pointerdown", stop);
  explorer.stage.addEventListener("keydown", stop);
  explorer.buttons("Show", [
    ...data.factors.map(([factor, title]) => ({ label: `Show ${title}`, action: () => show(factor) })),
    { label: "Back to the start", action: back },
  ]);

  sides.forEach(install);

  explorer.update = () => {
    const { sheet } = sides[0].model;
    original = sheet ? tile(sides[0].model, 0, 0) : null;
    sides.forEach(render);
    const begin = data.starts[controls.start.value] || "image";
    const notes = [...new Set(sides.map(({ model }) => model.note))];
    const still = sides.every(({ origin, moved }) => origin && moved === null);
    const words = sides.map((side) => {
      const { model, moved } = side;
      if (!side.origin) return `${model.label}: loading.`;
      if (moved === null) return `${model.label} is at the start.`;
      const { label, hint } = side.sliders[moved];
      return `${model.label}, ${label} (${hint}): ${change(side).join(", ")}.`;
    });
    strip.describe(`from the ${begin} in the middle. ${words.join(" ")}`);
    const about = notes.length > 1 ? sides.map(({ model }) => `${model.label}: ${model.note}.`).join(" ") : `${notes[0]}.`;
    explorer.describe(still ? `Both models are at the start. ${about}` : words.join(" "));
  };
});
