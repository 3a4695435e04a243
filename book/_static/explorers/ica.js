/* The ICA explorer: what coordinate ascent from the truth does to three directions, for several beta (Fig. 1).
 *
 * Nothing is fitted here; the notebook embeds the paths of its fits. `Explorers.ica` reads weights as isa/toys/ica.py does
 * and is tested against it. A matrix W is its two rows.
 */
Explorers.ica = (() => {
  "use strict";

  const lengths = ([x, y]) => x.map((value, k) => Math.hypot(value, y[k]));
  const survivors = (W, threshold) => lengths(W).map((length, _, all) => length > threshold * Math.max(...all));
  const angles = ([x, y]) => x.map((value, k) => (((Math.atan2(y[k], value) * 180) / Math.PI) % 180 + 180) % 180);

  /** Angle between the two longest columns in degrees: 90 is orthogonal. */
  function widestPair(W) {
    const length = lengths(W);
    const [first, second] = [...length.keys()].sort((a, b) => length[b] - length[a]);
    const gap = Math.abs(angles(W)[first] - angles(W)[second]) % 180;
    return Math.min(gap, 180 - gap);
  }

  /** The shortest column over the longest. */
  const ratio = (W) => Math.min(...lengths(W)) / Math.max(...lengths(W));

  return { lengths, survivors, angles, widestPair, ratio };
})();

Explorers.define("ica", (explorer, data) => {
  "use strict";
  const { fixed, plain, count } = Explorers;
  const ICA = Explorers.ica;
  const last = Math.max(...data.paths.map((path) => path.length - 1));
  const ratios = data.paths.map((path) => path.map(ICA.ratio));
  const widest = data.paths.map((path) => path.map(ICA.widestPair));
  const alive = (W) => ICA.survivors(W, data.threshold).filter(Boolean).length;

  const beta = explorer.slider({ name: "beta", label: "β", hint: "weight of the KL", stops: data.betas, value: data.pair[0] });
  const steps = explorer.slider({ name: "steps", label: "steps", hint: "taken", max: last, value: data.steps });
  const jump = (b, at) => () => ([beta.value, steps.value] = [b, at]);
  explorer.buttons("Steps and settings", [
    explorer.player(steps, { label: "Play the steps" }),
    { label: "the truth", action: () => (steps.value = 0) },
    { label: "Fig. 1, middle", action: jump(data.pair[0], data.steps) },
    { label: "Fig. 1, right", action: jump(data.pair[1], data.steps) },
  ]);

  const now = {};

  function directions(pen, W) {
    const limit = data.limit;
    const unit = (0.72 * limit) / Math.max(...ICA.lengths(data.truth));
    const plot = pen.axes({ x: [-limit, limit], y: [-limit, limit], equal: true, xlabel: "x₁", ylabel: "x₂" });
    plot.dots(data.points, "sky", { radius: pen.small ? 1 : 1.4, alpha: 0.5 });
    const draw = (matrix, colour, width) =>
      matrix[0].forEach((x, k) => {
        const end = [unit * x, unit * matrix[1][k]];
        plot.line([end.map((value) => -value), end], colour, { width });
      });
    draw(data.truth, "blue", 1.4);
    draw(W, "vermilion", 2.8);
  }

  const key = [["true", "blue"], ["found", "vermilion"]];
  const onTheWay = explorer.panel({ title: "On the way", legend: key, draw: (pen) => directions(pen, now.W) });
  const atTheEnd = explorer.panel({ title: "Converged", legend: key, draw: (pen) => directions(pen, now.end) });

  function course(pen, curves, range, rule, ylabel) {
    const plot = pen.axes({ x: [0, last], y: range, xlabel: "steps", ylabel: pen.small ? "" : ylabel });
    plot.rule({ y: rule });
    plot.rule({ x: steps.value });
    curves.forEach((curve, k) => {
      if (k !== now.index) plot.line(curve.map((value, step) => [step, value]), "grey", { width: 1, alpha: 0.7 });
    });
    const chosen = curves[now.index];
    plot.line(chosen.map((value, step) => [step, value]), "vermilion", { width: 2.2 });
    plot.dots([[now.step, chosen[now.step]]], "vermilion", { radius: 4, alpha: 1 });
  }

  const shortest = explorer.panel({
    title: "Shortest over longest",
    ratio: 1.25,
    draw: (pen) => course(pen, ratios, [0, 1.04], data.threshold, ""),
  });
  const between = explorer.panel({
    title: "Angle of the two longest",
    ratio: 1.25,
    draw: (pen) => course(pen, widest, [Math.min(...widest.flat()) - 3, 93], 90, "degrees"),
  });
  const table = explorer.numbers([
    { name: "alive", label: "directions that survive" },
    { name: "angle", label: "angle of the two longest", digits: 1 },
    { name: "ratio", label: "shortest over longest", digits: 3 },
    { name: "pruned", label: "steps until the first is pruned" },
    { name: "aliveEnd", label: "that survive at convergence" },
    { name: "angleEnd", label: "their angle at convergence", digits: 1 },
  ]);

  explorer.update = () => {
    const index = data.betas.indexOf(beta.value);
    const path = data.paths[index];
    const step = Math.min(steps.value, path.length - 1);
    const [W, end] = [path[step], data.converged[index]];
    const dead = path.findIndex((weights) => alive(weights) < weights[0].length);
    Object.assign(now, { index, step, W, end });
    const values = {
      alive: alive(W),
      angle: widest[index][step],
      ratio: ratios[index][step],
      pruned: dead < 0 ? `more than ${last}` : String(dead),
      aliveEnd: alive(end),
      angleEnd: ICA.widestPair(end),
    };
    table.set({ ...values, alive: count(values.alive), aliveEnd: count(values.aliveEnd), angle: `${fixed(values.angle, 1)}°`, angleEnd: `${fixed(values.angleEnd, 1)}°` });
    table.values = values;
    onTheWay.describe(
      `${count(values.alive)} directions survive, the two longest ${fixed(values.angle, 0)} degrees apart`,
      `β = ${plain(beta.value)} after ${step} steps`,
    );
    atTheEnd.describe(
      `${count(values.aliveEnd)} directions survive, the two longest ${fixed(values.angleEnd, 0)} degrees apart`,
      `β = ${plain(beta.value)}, converged`,
    );
    shortest.describe(`${fixed(values.ratio)} at step ${step}; below ${data.threshold} a column counts as pruned`);
    between.describe(`${fixed(values.angle, 0)} degrees at step ${step}`);
    explorer.describe(
      `β = ${plain(beta.value)} after ${step} steps from the truth: ${count(values.alive)} directions survive, the two longest ` +
        `${fixed(values.angle, 0)} degrees apart, the shortest ${fixed(values.ratio)} times the longest. ` +
        `At convergence ${count(values.aliveEnd)} survive, ${fixed(values.angleEnd, 0)} degrees apart.`,
    );
  };
});
