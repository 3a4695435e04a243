/* The factor-analysis explorer: what a rotation of the latents, beta and the noise do to the posterior and its bound (App. B).
 *
 * `Explorers.factorAnalysis` holds the mathematics, which follows isa/toys/factor_analysis.py name by name and is tested
 * against it (tests/test_explorers.py). Matrices are arrays of rows; W is L x K, noise has one variance a row, S is L x L.
 */
Explorers.factorAnalysis = (() => {
  "use strict";

  const columns = (A) => A[0].map((_, k) => A.map((row) => row[k]));
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const product = (A, B) => {
    const across = columns(B);
    return A.map((row) => across.map((column) => dot(row, column)));
  };
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  /** The lower Cholesky factor of a positive definite matrix. */
  function cholesky(A) {
    const L = A.map((row) => row.map(() => 0));
    A.forEach((row, i) => {
      for (let j = 0; j <= i; j++) {
        const rest = row[j] - dot(L[i].slice(0, j), L[j].slice(0, j));
        L[i][j] = i === j ? Math.sqrt(rest) : rest / L[j][j];
      }
    });
    return L;
  }

  const logDet = (A) => 2 * sum(cholesky(A).map((row, i) => Math.log(row[i])));

  /** A^-1 B for a positive definite A. */
  function solve(A, B) {
    const L = cholesky(A);
    const n = A.length;
    return columns(
      columns(B).map((b) => {
        const y = [...b];
        for (let i = 0; i < n; i++) y[i] = (y[i] - dot(L[i].slice(0, i), y.slice(0, i))) / L[i][i];
        for (let i = n - 1; i >= 0; i--) {
          for (let j = i + 1; j < n; j++) y[i] -= L[j][i] * y[j];
          y[i] /= L[i][i];
        }
        return y;
      }),
    );
  }

  const identity = (n) => Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_, j) => Number(i === j)));

  /** W' = W R(angle)^T: the first two latents are turned. */
  function rotate(W, angle) {
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    return W.map(([a, b, ...rest]) => [cos * a - sin * b, sin * a + cos * b, ...rest]);
  }

  /** I + W^T D^-1 W / beta. */
  function precision(W, noise, beta) {
    const scaled = W.map((row, i) => row.map((value) => value / noise[i] / beta));
    return product(columns(W), scaled).map((row, i) => row.map((value, j) => value + Number(i === j)));
  }

  /** Eq. 15, beta-scaled: covariance of the exact posterior and recognition weights R. */
  function posterior(W, noise, beta = 1) {
    const Lambda = precision(W, noise, beta);
    const scaled = columns(W).map((column) => column.map((value, i) => value / noise[i] / beta));
    return { cov: solve(Lambda, identity(Lambda.length)), recognition: solve(Lambda, scaled) };
  }

  /** Variances of the best factorised Gaussian: the reciprocal diagonal of the precision. */
  const meanField = (W, noise, beta = 1) => precision(W, noise, beta).map((row, k) => 1 / row[k]);

  /** log p(x) for beta = 1, and the bound of Eq. 16 for every beta; nats, summed over n data points. */
  function replicatedLogLikelihood(W, noise, S, n, beta = 1) {
    const C = product(W, columns(W)).map((row, i) => row.map((value, j) => value + (i === j ? beta * noise[i] : 0)));
    const misfit = sum(solve(C, S).map((row, i) => row[i]));
    const volume = logDet(C) - sum(noise.map((d) => Math.log(beta * d)));
    return (-n / 2) * (volume + sum(noise.map((d) => Math.log(2 * Math.PI * d))) / beta + misfit);
  }

  const logLikelihood = (W, noise, S, n) => replicatedLogLikelihood(W, noise, S, n, 1);

  /** E_q log p(x | z) and KL(q || p) at the best factorised q for beta; neither carries a factor of beta. */
  function freeEnergyTerms(W, noise, S, n, beta = 1) {
    const { recognition } = posterior(W, noise, beta);
    const variance = meanField(W, noise, beta);
    const residual = product(W, recognition).map((row, i) => row.map((value, j) => Number(i === j) - value));
    const power = (A) => product(A, S).map((row, i) => dot(row, A[i]));
    const misfit = sum(power(residual).map((value, i) => value / noise[i]));
    const blur = sum(columns(W).map((column, k) => variance[k] * sum(column.map((value, i) => (value * value) / noise[i]))));
    const constant = sum(noise.map((d) => Math.log(2 * Math.PI * d)));
    const kl = sum(power(recognition).map((value, k) => (variance[k] - 1 - Math.log(variance[k]) + value) / 2));
    return { reconstruction: (-n / 2) * (constant + misfit + blur), kl: n * kl };
  }

  /** Eq. 13. */
  function freeEnergy(W, noise, S, n, beta = 1) {
    const { reconstruction, kl } = freeEnergyTerms(W, noise, S, n, beta);
    return reconstruction - beta * kl;
  }

  /** What the factorised q misses of the bound of Eq. 16. */
  function meanFieldGap(W, noise, n, beta = 1) {
    const Lambda = precision(W, noise, beta);
    return (n / 2) * (sum(Lambda.map((row, k) => Math.log(row[k]))) - logDet(Lambda));
  }

  /** The best weights for data of covariance diag(variances) and isotropic noise: at beta = 1 maximum likelihood. */
  const optimalWeights = (variances, noise, beta = 1) =>
    variances.map((c, i) => variances.map((_, k) => (i === k ? Math.sqrt(Math.max(c - beta * noise, 0)) : 0)));

  return {
    rotate, posterior, meanField, logLikelihood, replicatedLogLikelihood, freeEnergyTerms, freeEnergy, meanFieldGap,
    optimalWeights,
  };
})();

Explorers.define("factor-analysis", (explorer, data) => {
  "use strict";
  const { fixed, plain } = Explorers;
  const FA = Explorers.factorAnalysis;
  const S = data.variances.map((c, i) => data.variances.map((_, j) => (i === j ? c : 0)));
  const [lowest, highest] = [data.betas[0], data.betas.at(-1)];
  const BETAS = Array.from({ length: 61 }, (_, k) => lowest * (highest / lowest) ** (k / 60));
  const DEGREES = Array.from({ length: 91 }, (_, k) => 2 * k);
  const radians = (degrees) => (Math.PI * degrees) / 180;

  const angle = explorer.slider({
    name: "angle", label: "θ", hint: "rotation", min: 0, max: 180, step: 1, value: data.angle, format: (x) => `${x}°`,
  });
  const beta = explorer.slider({ name: "beta", label: "β", hint: "weight of the KL", stops: data.betas, value: 1 });
  const noise = explorer.slider({ name: "noise", label: "σ²", hint: "noise", stops: data.noise_vars, value: data.noise_var });
  const fit = explorer.choice({
    name: "lengths", label: "lengths", hint: "of W", value: "likelihood",
    options: [
      { label: "best likelihood", value: "likelihood" },
      { label: "best for this β", value: "beta" },
    ],
  });
  const convention = explorer.choice({
    name: "convention", label: "free energy", hint: "of", value: 13,
    options: [
      { label: "Eq. 13", value: 13 },
      { label: "Eq. 16", value: 16 },
    ],
  });
  const at = (degrees) => () => (angle.value = degrees);
  explorer.buttons("Rotations and settings", [
    { label: "aligned", action: at(0) },
    { label: "turned by 45°", action: at(45) },
    { label: "β = 1", action: () => (beta.value = 1) },
    { label: "β = 5", action: () => (beta.value = 5) },
  ]);

  const now = {};
  const reach = 1.5 * Math.sqrt(Math.max(...data.variances));

  const weights = explorer.panel({
    title: "Data and weights",
    legend: [["data", "grey"], ["model", "black", "dashed"], ["w₁", "green"], ["w₂", "orange"]],
    draw: (pen) => {
      const plot = pen.axes({ x: [-reach, reach], y: [-reach, reach], equal: true, xlabel: "x₁", ylabel: "x₂" });
      plot.ellipse(S, "grey", { width: 1.4 });
      plot.ellipse(now.model, "black", { width: 1.2, dash: [4, 3] });
      plot.arrow(now.W.map((row) => row[0]), "green", { name: "w₁" });
      plot.arrow(now.W.map((row) => row[1]), "orange", { name: "w₂" });
    },
  });
  const latents = explorer.panel({
    title: "Posterior of the latents",
    legend: [["exact", "blue"], ["mean field", "vermilion", "dashed"], ["prior", "grey", "dotted"]],
    draw: (pen) => {
      const plot = pen.axes({ x: [-1.2, 1.2], y: [-1.2, 1.2], equal: true, xlabel: "z₁", ylabel: "z₂" });
      plot.ellipse([[1, 0], [0, 1]], "grey", { width: 1.2, dash: [1, 4] });
      plot.ellipse(now.exact, "blue", { width: 2.2 });
      plot.ellipse([[now.variance[0], 0], [0, now.variance[1]]], "vermilion", { width: 2.2, dash: [6, 4] });
    },
  });
  const turning = explorer.panel({
    title: "Free energy against the rotation",
    legend: [["bound", "black"], ["free energy", "vermilion"]],
    draw: (pen) => {
      const { bound, energy } = now.turning;
      const low = Math.min(...energy);
      const room = Math.max(0.12 * (bound - low), 1e-3 * Math.abs(bound), 0.5);
      const plot = pen.axes({
        x: [0, 180], y: [low - room, bound + room], xticks: [0, 45, 90, 135, 180], xlabel: "rotation θ in degrees",
        ylabel: pen.small ? "" : "nats",
      });
      const curve = DEGREES.map((degrees, k) => [degrees, energy[k]]);
      plot.area([...curve, [180, bound], [0, bound]], "vermilion", 0.14);
      plot.rule({ x: angle.value });
      plot.rule({ y: bound }, "black", { width: 1.8 });
      plot.line(curve, "vermilion");
      plot.dots([[angle.value, now.values.energy]], "vermilion", { radius: 4, alpha: 1 });
    },
  });
  const weighing = explorer.panel({
    title: "Free energy against β",
    legend: [["bound", "black"], ["free energy", "vermilion"]],
    draw: (pen) => {
      const { bound, energy } = now.weighing;
      const all = [...bound, ...energy];
      const [low, high] = [Math.min(...all), Math.max(...all)];
      const plot = pen.axes({
        x: [lowest, highest], logx: true, y: [low - 0.06 * (high - low), high + 0.08 * (high - low)],
        xlabel: "β", ylabel: pen.small ? "" : "nats",
      });
      plot.rule({ x: beta.value });
      plot.line(BETAS.map((b, k) => [b, bound[k]]), "black");
      plot.line(BETAS.map((b, k) => [b, energy[k]]), "vermilion");
      plot.dots([[beta.value, now.values.energy]], "vermilion", { radius: 4, alpha: 1 });
    },
  });
  const table = explorer.numbers([
    { name: "likelihood", label: "log-likelihood log p(x)" },
    { name: "bound", label: "bound of the free energy" },
    { name: "energy", label: "free energy" },
    { name: "gap", label: "bound minus free energy" },
    { name: "reconstruction", label: "reconstruction E log p(x | z)" },
    { name: "kl", label: "regularisation KL(q ‖ p)" },
    { name: "lower", label: "reconstruction minus KL" },
  ]);

  explorer.update = () => {
    const [b, sigma, n] = [beta.value, noise.value, data.n];
    const both = data.variances.map(() => sigma);
    const scale = convention.value === 13 ? (value) => value : (value, weight) => value / weight;
    const aligned = (weight) => FA.optimalWeights(data.variances, sigma, fit.value === "beta" ? weight : 1);
    const turn = (weight, degrees) => FA.rotate(aligned(weight), radians(degrees));
    const energy = (W, weight) => scale(FA.freeEnergy(W, both, S, n, weight), weight);
    const bound = (W, weight) => scale(weight * FA.replicatedLogLikelihood(W, both, S, n, weight), weight);
    const W = turn(b, angle.value);
    const { reconstruction, kl } = FA.freeEnergyTerms(W, both, S, n, b);
    const values = {
      likelihood: FA.logLikelihood(W, both, S, n),
      bound: bound(W, b),
      energy: energy(W, b),
      gap: bound(W, b) - energy(W, b),
      reconstruction,
      kl,
      lower: reconstruction - kl,
    };
    const { cov } = FA.posterior(W, both, b);
    Object.assign(now, {
      W,
      values,
      exact: cov,
      variance: FA.meanField(W, both, b),
      model: W.map((row, i) => W.map((other, j) => row[0] * other[0] + row[1] * other[1] + (i === j ? sigma : 0))),
      turning: { bound: values.bound, energy: DEGREES.map((degrees) => energy(turn(b, degrees), b)) },
      weighing: {
        bound: BETAS.map((weight) => bound(turn(weight, angle.value), weight)),
        energy: BETAS.map((weight) => energy(turn(weight, angle.value), weight)),
      },
    });
    table.set(values);
    const correlation = cov[0][1] / Math.sqrt(cov[0][0] * cov[1][1]);
    const lengths = [0, 1].map((k) => Math.hypot(...W.map((row) => row[k])));
    const pruned = aligned(b).filter((row, k) => row[k] === 0).length;
    const slim = [0, 1].map((k) => Math.sqrt(now.variance[k] / cov[k][k]));
    weights.describe(`columns of lengths ${fixed(lengths[0])} and ${fixed(lengths[1])} over the data's ellipse`);
    latents.describe(
      `exact with correlation ${fixed(correlation)}, mean field with standard deviations ` +
        `${fixed(Math.sqrt(now.variance[0]))} and ${fixed(Math.sqrt(now.variance[1]))}`,
    );
    turning.describe(`${fixed(values.energy)} nats at ${angle.value} degrees, bound ${fixed(values.bound)}`);
    weighing.describe(`${fixed(values.energy)} nats at beta ${plain(b)}, bound ${fixed(values.bound)}`);
    const upright = Math.abs(correlation) < 0.005;
    explorer.describe(
      `Turned by ${angle.value} degrees, β = ${plain(b)}, σ² = ${plain(sigma)}: ` +
        (upright
          ? "the exact posterior has no correlation, so the mean field is exact and nothing is lost. "
          : `the exact posterior has correlation ${fixed(correlation)}; the mean field is ` +
            `${fixed(slim[0])} and ${fixed(slim[1])} times as wide along the axes, and ${fixed(values.gap)} nats are lost. `) +
        `Log-likelihood ${fixed(values.likelihood)}, free energy ${fixed(values.energy)} nats.` +
        ["", " One direction of the weights is pruned.", " Both directions of the weights are pruned."][pruned],
    );
  };
});
