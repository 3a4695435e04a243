/* What all explorers share. Plain scripts, no modules: a browser does not load modules from files.
 *
 * An explorer is one script, `NAME.js`, which calls
 *
 *     Explorers.define("NAME", (explorer, data) => { ... });
 *
 * once for every `<div class="explorer" data-explorer="NAME">` of the page, with the JSON that the notebook embedded there
 * (`edition.explorers.explorer`). The extension `book/_ext/pages.py` adds the scripts and the style to the pages that need
 * them. `explorer` offers, each creating its own part of the page and returning a handle on it:
 *
 *     explorer.slider({name, label, hint, stops | min, max, step, value, format})   -> {value}
 *     explorer.choice({name, label, options: [{label, value}], value})              -> {value}
 *     explorer.buttons(label, [{label, action}])
 *     explorer.player(slider, {label, pause, milliseconds})   for `buttons`: moves a slider to its end, step by step
 *     explorer.panel({title, legend, wide, ratio, draw(pen), turn(dx, dy)})         -> {canvas, key, describe(text, title)}
 *         legend: [[name, colour, "solid" | "dashed" | "dotted"]]; turn: the panel can be dragged
 *     explorer.numbers([{name, label, digits}])                                     -> {set({name: value})}
 *     explorer.describe(text)         what is shown, in words; screen readers hear it once it rests
 *     explorer.update = () => { ... } runs once a frame after something was moved; then all panels are drawn
 *
 * A panel's `draw` gets a `Pen`, in CSS pixels however dense the screen is: `pen.axes({x, y, ...})` gives a plot with
 * `line`, `area`, `dots`, `ellipse`, `arrow`, `text`, `rule`. Colours are named as in book/edition/figures/style.py and come from
 * explorers.css, by day and by night. Controls are the browser's own, so that keyboard, touch and screen readers work.
 */
window.Explorers = (() => {
  "use strict";

  const REST = 500; // milliseconds without a change after which the description is announced
  let created = 0;

  // --- words and numbers ---------------------------------------------------------------------------------------------

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  /** A number with a given number of decimal places, and a true minus sign. */
  function fixed(value, digits = 2) {
    if (Number.isNaN(value)) return "undefined";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    const text = value.toFixed(digits);
    return /^-[0.]*$/.test(text) ? text.slice(1) : text.replace("-", "−");
  }

  /** The shortest text for a tick or a setting. */
  const plain = (value) => String(Number(value.toPrecision(6))).replace("-", "−");

  const COUNTS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
  const count = (n) => COUNTS[n] ?? String(n);

  /** Round steps that cover an interval: 1, 2 or 5 times a power of ten. */
  function ticks([low, high], most) {
    const rough = (high - low) / Math.max(most, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9));
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
    return found;
  }

  function logTicks([low, high], most) {
    const all = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const factor of [1, 2, 5]) all.push(factor * 10 ** power);
    const inside = all.filter((value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9));
    if (inside.length <= most) return inside;
    return inside.filter((value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9);
  }

  // --- drawing -------------------------------------------------------------------------------------------------------

  class Pen {
    constructor(context, width, height, colours, family) {
      Object.assign(this, { context, width, height, colours, small: width < 260 });
      this.size = this.small ? 11 : 12;
      context.font = `${this.size}px ${family}`;
      this.family = family;
    }

    colour(name, alpha = 1) {
      this.context.globalAlpha = alpha;
      return this.colours[name] ?? name;
    }

    path(points, closed = false) {
      const { context } = this;
      context.beginPath();
      points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      if (closed) context.closePath();
    }

    stroke(colour, { width = 1.8, dash = [], alpha = 1 } = {}) {
      const { context } = this;
      context.strokeStyle = this.colour(colour, alpha);
      context.lineWidth = width;
      context.lineJoin = context.lineCap = "round";
      context.setLineDash(dash);
      context.stroke();
      context.setLineDash([]);
      context.globalAlpha = 1;
    }

    fill(colour, alpha = 1) {
      this.context.fillStyle = this.colour(colour, alpha);
      this.context.fill();
      this.context.globalAlpha = 1;
    }

    text(string, x, y, { colour = "black", align = "center", baseline = "middle", bold = false, halo = false } = {}) {
      const { context } = this;
      context.font = `${bold ? "bold " : ""}${this.size}px ${this.family}`;
      context.textAlign = align;
      context.textBaseline = baseline;
      if (halo) {
        context.strokeStyle = this.colour("ground");
        context.lineWidth = 3;
        context.lineJoin = "round";
        context.strokeText(string, x, y);
      }
      context.fillStyle = this.colour(colour);
      context.fillText(string, x, y);
    }

    /** Axes that fill the panel; `equal` gives both the same scale, widening one of the ranges. */
    axes(options) {
      return new Plot(this, options);
    }
  }

  class Plot {
    constructor(pen, { x, y, xlabel = "", ylabel = "", equal = false, logx = false, xticks, yticks, xnames }) {
      const { context, width, height, size } = pen;
      const wide = (values) => Math.max(...values.map((value) => context.measureText(plain(value)).width));
      const top = size * 0.7;
      const right = size * 0.9;
      const bottom = xlabel ? 2.9 * size : 1.6 * size;
      const upright = yticks ?? ticks(y, Math.max(2, Math.min(5, (height - bottom) / 34)));
      const left = (upright.length ? wide(upright) + size * 0.6 : 4) + (ylabel ? size * 1.35 : 0);
      Object.assign(this, { pen, left, top, logx, right: width - right, bottom: height - bottom });
      const [across, up] = [this.right - left, this.bottom - top];
      if (equal) {
        const unit = Math.max((x[1] - x[0]) / across, (y[1] - y[0]) / up);
        const widen = ([a, b], room) => [(a + b - unit * room) / 2, (a + b + unit * room) / 2];
        [x, y] = [widen(x, across), widen(y, up)];
      }
      Object.assign(this, { x, y });
      const level = xticks ?? (logx ? logTicks : ticks)(x, Math.max(2, Math.min(6, across / 42)));
      context.strokeStyle = pen.colour("black", 0.75);
      context.lineWidth = 1;
      context.beginPath();
      const crisp = (value) => Math.round(value) + 0.5;
      context.moveTo(crisp(left), top);
      context.lineTo(crisp(left), crisp(this.bottom));
      context.lineTo(this.right, crisp(this.bottom));
      for (const value of level) {
        context.moveTo(crisp(this.X(value)), crisp(this.bottom));
        context.lineTo(crisp(this.X(value)), this.bottom + 4);
      }
      const seen = upright.filter((value) => value >= y[0] - 1e-9 && value <= y[1] + 1e-9);
      for (const value of seen) {
        context.moveTo(crisp(left), crisp(this.Y(value)));
        context.lineTo(left - 4, crisp(this.Y(value)));
      }
      context.stroke();
      context.globalAlpha = 1;
      level.forEach((value, i) => {
        const name = xnames ? xnames[i] : plain(value);
        const half = context.measureText(name).width / 2;
        const at = Math.min(Math.max(this.X(value), half), width - half);
        pen.text(name, at, this.bottom + 5, { baseline: "top" });
      });
      seen.forEach((value) => pen.text(plain(value), left - 6, this.Y(value), { align: "right" }));
      if (xlabel) pen.text(xlabel, (left + this.right) / 2, height - 1, { baseline: "bottom" });
      if (ylabel) {
        context.save();
        context.translate(size * 0.65, (top + this.bottom) / 2);
        context.rotate(-Math.PI / 2);
        pen.text(ylabel, 0, 0);
        context.restore();
      }
    }

    X(value) {
      const [low, high] = this.x;
      const part = this.logx ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
      return this.left + part * (this.right - this.left);
    }

    Y(value) {
      const [low, high] = this.y;
      return this.bottom - ((value - low) / (high - low)) * (this.bottom - this.top);
    }

    at([x, y]) {
      return [this.X(x), this.Y(y)];
    }

    /** Draw within the axes only. */
    inside(drawing) {
      const { context } = this.pen;
      context.save();
      context.beginPath();
      context.rect(this.left, this.top - 1, this.right - this.left, this.bottom - this.top + 1);
      context.clip();
      drawing();
      context.restore();
    }

    line(points, colour, options = {}) {
      this.inside(() => {
        this.pen.path(points.map((point) => this.at(point)), options.closed);
        this.pen.stroke(colour, options);
      });
    }

    area(points, colour, alpha) {
      this.inside(() => {
        this.pen.path(points.map((point) => this.at(point)), true);
        this.pen.fill(colour, alpha);
      });
    }

    dots(points, colour, { radius = 1.6, alpha = 0.5 } = {}) {
      const { context } = this.pen;
      this.inside(() => {
        context.fillStyle = this.pen.colour(colour, alpha);
        for (const point of points) {
          const [x, y] = this.at(point);
          context.beginPath();
          context.arc(x, y, radius, 0, 2 * Math.PI);
          context.fill();
        }
        context.globalAlpha = 1;
      });
    }

    /** The contour of a Gaussian with this 2 x 2 covariance, `radius` standard deviations from the mean. */
    ellipse(cov, colour, { radius = 1, ...options } = {}) {
      const [[a, b], [, d]] = cov;
      const root = Math.sqrt(a); // Cholesky: the unit circle times the lower factor
      const points = Array.from({ length: 121 }, (_, i) => {
        const angle = (2 * Math.PI * i) / 120;
        const below = Math.sqrt(Math.max(d - (b * b) / a, 0));
        return [radius * root * Math.cos(angle), radius * ((b / root) * Math.cos(angle) + below * Math.sin(angle))];
      });
      this.line(points, colour, { ...options, closed: true });
    }

    arrow(tip, colour, { width = 2.6, name = "" } = {}) {
      const [x0, y0] = this.at([0, 0]);
      const [x1, y1] = this.at(tip);
      const length = Math.hypot(x1 - x0, y1 - y0);
      const [u, v] = length > 0 ? [(x1 - x0) / length, (y1 - y0) / length] : [0, 0];
      const head = Math.min(9, length / 2);
      this.pen.path([[x0, y0], [x1 - u * head * 0.8, y1 - v * head * 0.8]]);
      this.pen.stroke(colour, { width });
      const wing = (side) => [x1 - u * head - side * v * head * 0.5, y1 - v * head + side * u * head * 0.5];
      this.pen.path([[x1, y1], wing(1), wing(-1)], true);
      this.pen.fill(colour);
      if (name && length) this.pen.text(name, x1 + u * 12, y1 + v * 12, { halo: true });
    }

    /** A straight line across the plot at one value of x or of y. */
    rule({ x, y }, colour = "grey", options = { width: 1, dash: [2, 3] }) {
      const points = x === undefined ? [[this.x[0], y], [this.x[1], y]] : [[x, this.y[0]], [x, this.y[1]]];
      this.line(points, colour, options);
    }

    text(string, at, options) {
      this.pen.text(string, ...this.at(at), options);
    }
  }

  // --- an explorer ---------------------------------------------------------------------------------------------------

  class Explorer {
    constructor(root) {
      this.root = root;
      this.prefix = `explorer-${(created += 1)}`;
      this.controls = {};
      this.panels = [];
      this.update = () => {};
      this.bar = element("div", { class: "explorer-controls", role: "group", "aria-label": "Controls" });
      this.grid = element("div", { class: "explorer-panels" });
      this.words = element("p", { class: "explorer-words", "aria-hidden": "true" });
      this.status = element("p", { class: "explorer-status", role: "status", "aria-atomic": "true" });
      this.stage = element("div", { class: "explorer-stage" }, this.bar, this.grid, this.words, this.status);
    }

    // -- controls

    add(name, label, hint, input, shown = []) {
      const id = `${this.prefix}-${name}`;
      input.id = id;
      const title = element("label", { for: id }, element("b", {}, label), hint ? ` ${hint}` : "");
      shown.forEach((output) => output.setAttribute("for", id));
      this.bar.append(element("div", { class: "explorer-control" }, title, ...shown, input));
    }

    slider({ name, label, hint = "", stops, min = 0, max, step = 1, value, format = plain }) {
      const input = element("input", { type: "range" });
      const output = element("output", { "aria-live": "off" }); // the slider announces its value by itself
      const places = stops ? { min: 0, max: stops.length - 1, step: 1 } : { min, max, step };
      Object.assign(input, places);
      const nearest = (wanted) =>
        stops.reduce((best, stop, i) => (Math.abs(stop - wanted) < Math.abs(stops[best] - wanted) ? i : best), 0);
      const control = {
        input,
        get value() {
          return stops ? stops[Number(input.value)] : Number(input.value);
        },
        set value(wanted) {
          input.value = stops ? nearest(wanted) : wanted;
          say();
        },
        get atEnd() {
          return Number(input.value) >= Number(input.max);
        },
      };
      const say = () => {
        const text = format(control.value);
        output.textContent = text;
        input.setAttribute("aria-valuetext", text);
      };
      control.value = value;
      input.addEventListener("input", () => {
        say();
        this.changed();
      });
      this.add(name, label, hint, input, [output]);
      return (this.controls[name] = control);
    }

    choice({ name, label, hint = "", options, value }) {
      const input = element("select");
      const control = {
        input,
        get value() {
          return this.options[input.selectedIndex]?.value;
        },
        set value(wanted) {
          input.selectedIndex = Math.max(0, this.options.findIndex((option) => option.value === wanted));
        },
        options: [],
        offer(list, wanted) {
          this.options = list;
          input.replaceChildren(...list.map((option) => element("option", {}, option.label)));
          this.value = wanted;
        },
      };
      control.offer(options, value);
      input.addEventListener("input", () => this.changed());
      this.add(name, label, hint, input);
      return (this.controls[name] = control);
    }

    buttons(label, list) {
      const row = element("div", { class: "explorer-buttons", role: "group", "aria-label": label });
      for (const { label: text, action } of list) {
        const button = element("button", { type: "button" }, text);
        button.addEventListener("click", () => {
          action(button);
          this.changed();
        });
        row.append(button);
      }
      this.bar.append(row);
      return row;
    }

    /** Moves a slider to its end; at once where the reader's system asks for reduced motion. */
    player(slider, { label, pause = "Pause", milliseconds = 60 }) {
      const still = window.matchMedia("(prefers-reduced-motion: reduce)");
      let timer = null;
      const stop = (button) => {
        clearInterval(timer);
        timer = null;
        button.textContent = label;
      };
      const forward = () => {
        const { input } = slider;
        input.value = still.matches ? input.max : Number(input.value) + Number(input.step);
        input.dispatchEvent(new Event("input"));
      };
      const play = (button) => {
        if (timer !== null) return stop(button);
        if (slider.atEnd) slider.value = Number(slider.input.min);
        if (still.matches) return forward();
        button.textContent = pause;
        timer = setInterval(() => {
          forward();
          if (slider.atEnd) stop(button);
        }, milliseconds);
      };
      return { label, action: play };
    }

    // -- what is shown

    panel({ title, legend = [], wide = false, ratio = 1, draw, turn }) {
      const canvas = element("canvas", { role: "img", "aria-label": title, style: `aspect-ratio: ${ratio}` });
      const heading = element("div", { class: "explorer-title", "aria-hidden": "true" }, title);
      const keys = legend.map(([name, colour, line = "solid"]) => {
        const style = `border-top: 3px ${line} var(--explorer-${colour})`;
        return element("span", {}, element("i", { style }), name);
      });
      const key = element("div", { class: "explorer-legend", "aria-hidden": "true" }, ...keys);
      const box = element("div", { class: `explorer-panel${wide ? " explorer-wide" : ""}` }, heading, key, canvas);
      this.grid.append(box);
      const panel = {
        canvas,
        key,
        draw,
        describe: (text, name = title) => {
          heading.textContent = name;
          canvas.setAttribute("aria-label", `${name}: ${text}`);
        },
      };
      if (turn) {
        canvas.classList.add("explorer-turns");
        let last = null;
        canvas.addEventListener("pointerdown", (event) => {
          canvas.setPointerCapture(event.pointerId);
          last = event;
        });
        canvas.addEventListener("pointermove", (event) => {
          if (!last || !canvas.hasPointerCapture(event.pointerId)) return;
          turn((event.clientX - last.clientX) / canvas.clientWidth, (event.clientY - last.clientY) / canvas.clientHeight);
          last = event;
          this.changed();
        });
        canvas.addEventListener("lostpointercapture", () => (last = null));
      }
      this.panels.push(panel);
      return panel;
    }

    numbers(list) {
      const cells = Object.fromEntries(list.map(({ name }) => [name, element("dd")]));
      const labels = Object.fromEntries(list.map(({ name, label }) => [name, element("dt", {}, label)]));
      const rows = list.map(({ name }) => element("div", {}, labels[name], cells[name]));
      this.stage.append(element("dl", { class: "explorer-numbers" }, ...rows));
      const table = {
        values: {},
        set(values) {
          this.values = values;
          for (const { name, digits = 2 } of list)
            cells[name].textContent = typeof values[name] === "number" ? fixed(values[name], digits) : values[name];
        },
        name: (name, label) => (labels[name].textContent = label),
      };
      this.values = table;
      return table;
    }

    describe(text) {
      this.pending = this.words.textContent = text;
      clearTimeout(this.resting);
      if (!this.status.textContent) this.status.textContent = text;
      else if (text !== this.status.textContent) this.resting = setTimeout(() => (this.status.textContent = text), REST);
    }

    // -- life

    start() {
      this.root.append(this.stage);
      this.root.classList.add("explorer-on");
      this.root.explorer = this;
      // the size in device pixels changes also where only the zoom or the screen does
      const sizes = new ResizeObserver(() => this.paint());
      for (const { canvas } of this.panels) {
        try {
          sizes.observe(canvas, { box: "device-pixel-content-box" });
        } catch {
          sizes.observe(canvas);
        }
      }
      new MutationObserver(() => this.paint()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
      this.update();
      this.paint();
    }

    changed() {
      if (this.frame) return;
      this.frame = requestAnimationFrame(() => {
        this.frame = null;
        this.update();
        this.paint();
      });
    }

    paint() {
      const style = getComputedStyle(this.root);
      const names = ["blue", "orange", "green", "vermilion", "purple", "sky", "black", "grey", "ground"];
      const colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--explorer-${name}`).trim()]));
      for (const { canvas, draw } of this.panels) {
        const [width, height] = [canvas.clientWidth, canvas.clientHeight];
        if (!width) continue;
        const density = window.devicePixelRatio || 1;
        const [columns, rows] = [Math.round(width * density), Math.round(height * density)];
        if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
        const context = canvas.getContext("2d");
        context.setTransform(columns / width, 0, 0, rows / height, 0, 0);
        context.clearRect(0, 0, width, height);
        draw(new Pen(context, width, height, colours, style.fontFamily));
      }
    }
  }

  function open(root, mount) {
    try {
      const explorer = new Explorer(root);
      mount(explorer, JSON.parse(root.querySelector('script[type="application/json"]').textContent));
      explorer.start();
    } catch (error) {
      root.classList.add("explorer-failed");
      console.error(error);
    }
  }

  function define(name, mount) {
    const start = () => document.querySelectorAll(`[data-explorer="${name}"]`).forEach((root) => open(root, mount));
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
  }

  return { define, fixed, plain, count, ticks };
})();
