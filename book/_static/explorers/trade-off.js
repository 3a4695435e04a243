/* The trade-off explorer: MIG against reconstruction, every recorded run a mark, and the record of the one that is chosen.
 *
 * Nothing is computed here but what is in view; means and standard errors come from edition.stats. A run's traversals are
 * one picture in a file of its own (book/_ext/pages.py), loaded when the run is chosen.
 */
Explorers.tradeOff = (() => {
  "use strict";

  const folder = new URL("files/", document.currentScript.src);

  /** Indices of the runs that pass; a filter that is null lets all pass. */
  const filter = (runs, wanted) =>
    runs.flatMap((run, i) =>
      Object.entries(wanted).every(([name, value]) => value === null || run[name] === value) ? [i] : [],
    );

  /** The range of values with some room on both sides. */
  function range(values) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = 0.06 * (high - low) || 0.05 * Math.abs(high) || 1;
    return [low - room, high + room];
  }

  /** Which of the points, in pixels, is nearest to a place, and no further than `most`; -1 where none is. */
  function nearest(points, [x, y], most) {
    let [best, least] = [-1, most];
    points.forEach(([u, v], i) => {
      const far = Math.hypot(u - x, v - y);
      if (far <= least) [best, least] = [i, far];
    });
    return best;
  }

  /** Outlines of marks around the origin, as in edition.figures.results.METHODS; a circle is many corners. */
  const cross = [[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1], [-1, -1]];
  const OUTLINES = {
    o: Array.from({ length: 24 }, (_, i) => [Math.cos((i * Math.PI) / 12), Math.sin((i * Math.PI) / 12)]),
    s: [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]],
    "^": [[0, -1.15], [1.05, 0.8], [-1.05, 0.8]],
    v: [[0, 1.15], [1.05, -0.8], [-1.05, -0.8]],
    D: [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]],
    P: cross.map(([x, y]) => [x / 2.8, y / 2.8]),
  };
  const SIGNS = { o: "●", s: "■", "^": "▲", v: "▼", D: "◆", P: "✚" };

  return { folder, filter, range, nearest, OUTLINES, SIGNS };
})();

Explorers.define("trade-off", (explorer, data) => {
  "use strict";
  const { fixed, plain, count } = Explorers;
  const T = Explorers.tradeOff;
  const { runs, methods, studies } = data;
  const method = (run) => methods[run.method];
  const different = (name, of = runs) => [...new Set(of.map((run) => run[name]))].sort((a, b) => a - b);
  const now = { shown: [], run: null };

  // --- what is in view

  const all = (label) => ({ label, value: null });
  const study = explorer.choice({
    name: "study",
    label: "trained",
    options: studies.map(({ title }, value) => ({ label: title, value })),
    value: runs[data.first].study,
  });
  const wanted = {
    method: explorer.choice({
      name: "method",
      label: "objective",
      options: [all("all"), ...methods.map(({ label }, value) => ({ label, value }))],
      value: null,
    }),
    beta: explorer.choice({
      name: "beta",
      label: "β",
      hint: "(γ of FactorVAE)",
      options: [all("all"), ...different("beta").map((value) => ({ label: plain(value), value }))],
      value: null,
    }),
    seed: explorer.choice({
      name: "seed",
      label: "seed",
      options: [all("all"), ...different("seed").map((value) => ({ label: String(value), value }))],
      value: null,
    }),
  };
  const starts = Object.values(data.portraits)[0]?.bases ?? [];
  now.base = { value: 0 };
  if (starts.length > 1)
    now.base = explorer.choice({
      name: "base",
      label: "traversals from",
      options: starts.map((label, value) => ({ label, value })),
      value: starts.length - 1,
    });
  const seen = () => ({ study: study.value, ...Object.fromEntries(Object.entries(wanted).map(([k, v]) => [k, v.value])) });
  const name = (run) => `${method(run).label}, ${method(run).weight} = ${plain(run.beta)}, seed ${run.seed}`;
  const chosen = explorer.slider({
    name: "run",
    label: "run",
    hint: "by objective, β, seed",
    max: 0,
    value: 0,
    format: (place) => (now.shown.length ? name(runs[now.shown[place]]) : "none"),
  });
  chosen.input.closest(".explorer-control").style.gridColumn = "1 / -1";

  /** Offer the runs that pass the filters, and keep the one that was chosen if it is among them. */
  function offer() {
    const before = now.shown[chosen.value] ?? data.first;
    now.shown = T.filter(runs, seen());
    chosen.input.max = Math.max(0, now.shown.length - 1);
    chosen.input.disabled = !now.shown.length;
    const kept = now.shown.indexOf(before);
    chosen.value = kept < 0 ? Math.max(0, now.shown.findIndex((i) => i > before)) : kept;
  }
  [study, ...Object.values(wanted)].forEach(({ input }) => input.addEventListener("input", offer));

  const pictured = () => now.shown.map((i, place) => (data.portraits[runs[i].hash] ? place : -1)).filter((place) => place >= 0);
  explorer.buttons("Choose runs", [
    {
      label: "All runs",
      action: () => {
        for (const choice of Object.values(wanted)) choice.value = null;
        offer();
      },
    },
    {
      label: "Highest MIG in view",
      action: () => {
        const score = (place) => runs[now.shown[place]].mig;
        chosen.value = now.shown.map((_, place) => place).reduce((a, b) => (score(b) > score(a) ? b : a), 0);
      },
    },
    ...(Object.keys(data.portraits).length
      ? [
          {
            label: "Next run with traversals",
            action: () => {
              const places = pictured();
              if (places.length) chosen.value = places.find((place) => place > chosen.value) ?? places[0];
            },
          },
        ]
      : []),
  ]);

  // --- the plane

  function mark(plot, at, { colour, marker }, { radius, alpha = 1, hollow = false }) {
    const [x, y] = plot.at(at);
    plot.pen.path(T.OUTLINES[marker].map(([u, v]) => [x + radius * u, y + radius * v]), true);
    if (hollow) plot.pen.stroke(colour, { width: 1.2, alpha });
    else plot.pen.fill(colour, alpha);
  }

  function bars(plot, one, colour) {
    const style = { width: 1 };
    if (one.fit_error) plot.line([[one.fit - one.fit_error, one.mig], [one.fit + one.fit_error, one.mig]], colour, style);
    if (one.mig_error) plot.line([[one.fit, one.mig - one.mig_error], [one.fit, one.mig + one.mig_error]], colour, style);
  }

  const place = (run) => [run.fit, run.mig];
  const plane = explorer.panel({
    title: "MIG against reconstruction",
    legend: methods.map(({ label, colour, marker }) => [`${T.SIGNS[marker]} ${label}`, colour]),
    wide: true,
    ratio: 1.35,
    draw: (pen) => {
      const inside = runs.filter((run) => run.study === study.value);
      const [x, y] = ["fit", "mig"].map((axis) => T.range(inside.map((run) => run[axis])));
      const plot = pen.axes({ x, y, xlabel: "log-likelihood E[log p(x|z)], nats", ylabel: pen.small ? "" : "MIG" });
      now.plot = plot;
      const { reduced } = studies[study.value];
      for (const i of now.shown)
        mark(plot, place(runs[i]), method(runs[i]), { radius: pen.small ? 2.6 : 3.2, alpha: 0.5, hollow: reduced });
      const means = data.means.filter(
        (one) => one.study === study.value && [null, one.method].includes(wanted.method.value) && one.n > 1,
      );
      for (const of of different("line", means)) {
        const line = means.filter((one) => one.line === of);
        plot.line(line.map(place), method(line[0]).colour, { width: 1.6 });
        for (const one of line) {
          bars(plot, one, method(one).colour);
          mark(plot, place(one), method(one), { radius: pen.small ? 4 : 5.2 });
        }
      }
      for (const one of means)
        if (one.beta % 1 === 0) {
          const [x, y] = plot.at(place(one));
          const left = x > (plot.left + plot.right) / 2; // where the axes leave room
          pen.text(plain(one.beta), left ? x - 7 : x + 7, y - 4, { align: left ? "right" : "left", baseline: "bottom", halo: true });
        }
      if (now.run) {
        const [u, v] = plot.at(place(now.run));
        for (const [colour, width] of [["ground", 4.5], ["black", 2]]) {
          pen.path(T.OUTLINES.o.map(([a, b]) => [u + 9 * a, v + 9 * b]), true);
          pen.stroke(colour, { width });
        }
        mark(plot, place(now.run), method(now.run), { radius: 4.2, hollow: reduced });
      }
    },
  });

  /** Where the marks of the runs in view are, in pixels of the panel. */
  explorer.marks = () => (now.plot ? now.shown.map((i) => now.plot.at(place(runs[i]))) : []);
  const under = (event, most) => {
    const box = plane.canvas.getBoundingClientRect();
    return T.nearest(explorer.marks(), [event.clientX - box.left, event.clientY - box.top], most);
  };
  plane.canvas.addEventListener("click", (event) => {
    const found = under(event, event.pointerType === "touch" ? 28 : 16);
    if (found < 0) return;
    chosen.value = found;
    chosen.input.focus({ preventScroll: true }); // so that the arrow keys go on from here
    explorer.changed();
  });
  plane.canvas.addEventListener("pointermove", (event) => {
    plane.canvas.style.cursor = under(event, 16) < 0 ? "" : "pointer";
  });

  // --- the traversals of the chosen run

  const GAP = 2;
  const LABELS = 0.2; // of the width
  const tiles = explorer.panel({
    title: "Traversals",
    wide: true,
    draw: (pen) => {
      const { portrait, picture, base } = now;
      if (!portrait || !there(picture)) return;
      const [height, width] = portrait.size;
      const label = LABELS * pen.width;
      const across = (pen.width - label - GAP * (portrait.steps - 1)) / portrait.steps;
      const down = (across * height) / width;
      portrait.latents.forEach(([latent, factor, nats], row) => {
        const y = row * (down + GAP);
        pen.text(factor, 0, y + down / 2 - pen.size * 0.6, { align: "left" });
        pen.text(`z${latent + 1}, ${fixed(nats, 1)}${label < 90 ? "" : " nats"}`, 0, y + down / 2 + pen.size * 0.6, { align: "left" });
        for (let step = 0; step < portrait.steps; step++) {
          const from = [step * width, (base.value * portrait.latents.length + row) * height, width, height];
          pen.context.drawImage(picture, ...from, label + step * (across + GAP), y, across, down);
        }
      });
    },
  });
  const box = tiles.canvas.parentElement;
  const pictures = {};
  const there = (picture) => picture?.complete && picture.naturalWidth > 0;
  /** Width and height of the picture that is shown, once it is there. */
  explorer.pictured = () => (there(now.picture) ? [now.picture.naturalWidth, now.picture.naturalHeight] : null);

  function portrayed(run) {
    now.portrait = data.portraits[run?.hash] ?? null;
    box.style.display = now.portrait ? "" : "none";
    if (!now.portrait) return;
    const { file, latents, steps, size } = now.portrait;
    if (!pictures[file]) {
      pictures[file] = new Image();
      pictures[file].addEventListener("load", () => explorer.paint());
      pictures[file].src = new URL(`${file.replace(/^.*\/|\.npz$/g, "")}.png`, T.folder);
    }
    now.picture = pictures[file];
    const rows = Math.max(latents.length, 1);
    tiles.canvas.style.maxHeight = "none";
    tiles.canvas.style.aspectRatio = String((steps * size[1]) / ((1 - LABELS) * rows * (size[0] + GAP)));
    tiles.describe(
      "a row for each active latent, from its minimum to its maximum posterior mean; " +
        latents.map(([latent, factor, nats]) => `z${latent + 1} has ${fixed(nats, 1)} nats about ${factor}`).join(", "),
      `Traversals of ${name(run)}`,
    );
  }

  // --- the record

  const gap = (i) => `gap${i}`;
  const fields = [
    { name: "run", label: "run" },
    { name: "trained", label: "trained" },
    { name: "prior", label: "prior" },
    { name: "mig", label: "MIG ± its estimator's error" },
    ...data.factors.map((factor, i) => ({ name: gap(i), label: `MIG of ${factor}`, digits: 3 })),
    { name: "fit", label: "log-likelihood [nats]" },
    { name: "elbo", label: "ELBO [nats]" },
    { name: "active", label: "active latents" },
    { name: "exponents", label: "exponents, the root's first" },
    { name: "hash", label: "hash" },
  ];
  const table = explorer.numbers(fields);

  explorer.update = () => {
    const run = (now.run = runs[now.shown[chosen.value]] ?? null);
    portrayed(run);
    const used = new Set(T.filter(runs, { study: study.value }).map((i) => runs[i].method));
    [...plane.key.children].forEach((entry, k) => (entry.hidden = !used.has(k)));
    const several = `${now.shown.length === 1 ? "one run" : `${count(now.shown.length)} runs`} in view`;
    if (!run) {
      table.set(Object.fromEntries(fields.map((field) => [field.name, "–"])));
      plane.describe("no run passes the filters");
      explorer.describe("No recorded run passes these filters.");
      return;
    }
    const values = {
      ...run,
      ...Object.fromEntries(run.gaps.map((value, i) => [gap(i), value])),
      run: name(run),
      trained: studies[run.study].title,
      mig: `${fixed(run.mig, 3)} ± ${fixed(run.mig_error, 4)}`,
      active: String(run.active),
      exponents: run.exponents ? run.exponents.map((p) => fixed(p, 2)).join(", ") : "none",
    };
    table.set(values);
    const gaps = data.factors.map((factor, i) => `${factor} ${fixed(run.gaps[i])}`).join(", ");
    const traversals = now.portrait ? " Its traversals are shown." : "";
    plane.describe(`${several}; chosen is ${name(run)}, at MIG ${fixed(run.mig)} and ${fixed(run.fit)} nats`);
    explorer.describe(
      `${name(run)}, ${studies[run.study].title}: MIG ${fixed(run.mig, 3)} (${gaps}), log-likelihood ${fixed(run.fit)} ` +
        `nats, ${run.active === 1 ? "one active latent" : `${count(run.active)} active latents`}.${traversals} ` +
        `${several[0].toUpperCase()}${several.slice(1)}.`,
    );
  };
  offer();
});
