/* The prior explorer: an Lp-nested function as a surface, its density in a plane, samples of it (Eq. 6 to 11, Algorithm 1).
 *
 * `Explorers.prior` holds the mathematics, which follows isa/prior name by name and is tested against it
 * (tests/test_explorers.py): everything is evaluated in logarithms of the nodes' values.
 */
Explorers.prior = (() => {
  "use strict";

  // Lanczos' approximation, relative error about 1e-15
  const LANCZOS = [
    0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
    12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
  ];

  /** log Gamma(x) for x > 0. */
  function lgamma(x) {
    if (x < 0.5) return lgamma(x + 1) - Math.log(x);
    const z = x - 1;
    let sum = LANCZOS[0];
    for (let i = 1; i < LANCZOS.length; i++) sum += LANCZOS[i] / (z + i);
    const t = z + LANCZOS.length - 1.5;
    return 0.5 * Math.log(2 * Math.PI) + (z + 0.5) * Math.log(t) - t + Math.log(sum);
  }

  /** A tree from `Node.structure`, nested arrays in which k stands for k leaves, and its exponents, the root's first. */
  function tree(structure, exponents) {
    let leaf = 0;
    let next = 0;
    const build = (children) => {
      const node = { p: exponents[next++], children: [], leaves: [] };
      for (const child of children)
        if (Array.isArray(child)) node.children.push(build(child));
        else for (let k = 0; k < child; k++) node.children.push({ leaves: [leaf++] });
      node.leaves = node.children.flatMap((child) => child.leaves);
      return node;
    };
    return build(structure);
  }

  const inner = (node) => node.children !== undefined;
  const nodes = (node) => (inner(node) ? [node, ...node.children.flatMap(nodes)] : []);
  const size = (node) => node.leaves.length;

  /** log f(z), Eq. 6 and 9. */
  function logNorm(node, z) {
    if (!inner(node)) return Math.log(Math.abs(z[node.leaves[0]]));
    if (node.children.length === 1) return logNorm(node.children[0], z);
    const scaled = node.children.map((child) => node.p * logNorm(child, z));
    const top = Math.max(...scaled);
    if (top === -Infinity) return -Infinity;
    return (Math.log(scaled.reduce((sum, value) => sum + Math.exp(value - top), 0)) + top) / node.p;
  }

  const norm = (root, z) => Math.exp(logNorm(root, z));

  /** Eq. 8 at R = 1. */
  function logSurface(root) {
    let total = size(root) * Math.LN2;
    for (const node of nodes(root)) {
      for (const child of node.children) total += lgamma(size(child) / node.p);
      total -= (node.children.length - 1) * Math.log(node.p) + lgamma(size(node) / node.p);
    }
    return total;
  }

  function logNormaliser(root, scale) {
    const n = size(root);
    return logSurface(root) + lgamma(n / root.p) + (n / root.p) * Math.log(scale) - Math.log(root.p);
  }

  /** Eq. 7 with Eq. 11, collapsed: nothing in it is undefined at 0. */
  function logProb(root, z, scale) {
    return -Math.exp(root.p * logNorm(root, z) - Math.log(scale)) - logNormaliser(root, scale);
  }

  const entropy = (root, scale) => size(root) / root.p + logNormaliser(root, scale);

  /** Eq. 11: the density of the radius v = f(z), as a logarithm. */
  function logRadial(root, v, scale) {
    const [n, p] = [size(root), root.p];
    const growth = n === 1 ? 0 : (n - 1) * Math.log(v);
    return Math.log(p) + growth - lgamma(n / p) - (n / p) * Math.log(scale) - Math.pow(v, p) / scale;
  }

  /** The nodes from the root down to the leaf, with the leaf's own end. */
  function pathTo(root, leaf) {
    const path = [root];
    while (inner(path.at(-1))) path.push(path.at(-1).children.find((child) => child.leaves.includes(leaf)));
    return path;
  }

  /** log E of (value of the last / value of the first)^order along a path. */
  function logShare(path, order) {
    let total = 0;
    for (let i = 0; i + 1 < path.length; i++) {
      const [p, below, within] = [path[i].p, size(path[i + 1]), size(path[i])];
      total += lgamma((below + order) / p) - lgamma(below / p) - lgamma((within + order) / p) + lgamma(within / p);
    }
    return total;
  }

  const logRadialMoment = (root, order, scale) =>
    lgamma((size(root) + order) / root.p) - lgamma(size(root) / root.p) + (order / root.p) * Math.log(scale);

  /** E |z_leaf|^order. */
  function absoluteMoment(root, leaf, order, scale) {
    return Math.exp(logRadialMoment(root, order, scale) + logShare(pathTo(root, leaf), order));
  }

  /** E z_a^2 z_b^2: Dirichlet shares where the two paths part, Betas elsewhere; 0 correlation where the root parts them. */
  function squaresTogether(root, a, b, scale) {
    const [one, two] = [pathTo(root, a), pathTo(root, b)];
    let last = 0;
    while (one[last + 1] === two[last + 1]) last++;
    const fork = one[last];
    const above = logRadialMoment(root, 4, scale) + logShare(one.slice(0, last + 1), 4);
    const [left, right] = [size(one[last + 1]), size(two[last + 1])];
    const { p } = fork;
    const parted =
      lgamma((left + 2) / p) - lgamma(left / p) + lgamma((right + 2) / p) - lgamma(right / p) +
      lgamma(size(fork) / p) - lgamma((size(fork) + 4) / p);
    return Math.exp(above + parted + logShare(one.slice(last + 1), 2) + logShare(two.slice(last + 1), 2));
  }

  /** Correlation of z_a^2 and z_b^2: 0 for independent coordinates. */
  function squareCorrelation(root, a, b, scale) {
    const moment = (leaf, order) => absoluteMoment(root, leaf, order, scale);
    const spread = (leaf) => moment(leaf, 4) - moment(leaf, 2) ** 2;
    return (squaresTogether(root, a, b, scale) - moment(a, 2) * moment(b, 2)) / Math.sqrt(spread(a) * spread(b));
  }

  // --- random numbers ------------------------------------------------------------------------------------------------

  /** Uniform numbers in (0, 1], by Doty-Humphrey's sfc32. */
  function uniforms(...seeds) {
    let [a, b, c, d] = [0x9e3779b9, 0x243f6a88, 0xb7e15162, 1];
    for (const seed of seeds) [a, b] = [Math.imul(a ^ seed, 0x85ebca6b), (b + Math.imul(seed, 0xc2b2ae35)) | 0];
    const draw = () => {
      const t = (a + b + d) | 0;
      d = (d + 1) | 0;
      a = b ^ (b >>> 9);
      b = (c + (c << 3)) | 0;
      c = ((c << 21) | (c >>> 11)) + t;
      return ((t >>> 0) + 1) / 4294967296;
    };
    for (let i = 0; i < 15; i++) draw();
    return draw;
  }

  const normal = (uniform) => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());

  /** log of a Gamma(shape, 1) variable, by Marsaglia and Tsang at shape + 1, so that small shapes do not underflow. */
  function logGamma(shape, uniform) {
    const d = shape + 1 - 1 / 3;
    const c = 1 / Math.sqrt(9 * d);
    for (;;) {
      const x = normal(uniform);
      const v = (1 + c * x) ** 3;
      if (v > 0 && Math.log(uniform()) < 0.5 * x * x + d - d * v + d * Math.log(v))
        return Math.log(d * v) + Math.log(uniform()) / shape;
    }
  }

  /** Algorithm 1, as LpNested.rsample has it: Gammas to the power 1/p at the root, Dirichlet shares below, signs. Each
   * sample has a stream of its own, so that most of them move smoothly with the exponents. */
  function sample(root, count, scale, seed) {
    const rows = [];
    for (let i = 0; i < count; i++) {
      const uniform = uniforms(seed, i);
      const z = new Array(size(root));
      const descend = (node, logValue, top) => {
        if (!inner(node)) {
          z[node.leaves[0]] = Math.exp(logValue) * (uniform() > 0.5 ? 1 : -1);
          return;
        }
        let shares = [0];
        if (top || node.children.length > 1) {
          shares = node.children.map((child) => logGamma(size(child) / node.p, uniform));
          const most = Math.max(...shares);
          const total = top
            ? -Math.log(scale)
            : most + Math.log(shares.reduce((sum, value) => sum + Math.exp(value - most), 0));
          shares = shares.map((value) => (value - total) / node.p);
        }
        node.children.forEach((child, k) => descend(child, logValue + shares[k], false));
      };
      descend(root, 0, true);
      rows.push(z);
    }
    return rows;
  }

  // --- geometry ------------------------------------------------------------------------------------------------------

  /** The tree over some of its leaves, which has the same f where the others are 0. */
  function pruned(node, leaves) {
    if (!inner(node)) return node;
    const children = node.children.filter((child) => child.leaves.some((leaf) => leaves.includes(leaf)));
    return { ...node, children: children.map((child) => pruned(child, leaves)) };
  }

  /** The curve f = 1 in the plane of two directions: `[u, v]` with f(u a + v b) = 1. */
  function section(root, a, b, points = 720) {
    const small = pruned(root, root.leaves.filter((k) => a[k] !== 0 || b[k] !== 0));
    return Array.from({ length: points + 1 }, (_, i) => {
      const angle = (2 * Math.PI * i) / points;
      const across = Math.round(1e15 * Math.cos(angle)) / 1e15; // on the axes exactly, where the cusps are
      const up = Math.round(1e15 * Math.sin(angle)) / 1e15;
      const reach = 1 / norm(small, a.map((value, k) => across * value + up * b[k]));
      return [across * reach, up * reach];
    });
  }

  /** The surface f = 1 over three coordinates, the others 0: rows of points from pole to pole. */
  function mesh(root, axes, rows = 56) {
    const small = pruned(root, axes);
    const z = new Array(size(root)).fill(0);
    return Array.from({ length: rows + 1 }, (_, i) =>
      Array.from({ length: 2 * rows + 1 }, (_, j) => {
        const [latitude, longitude] = [(Math.PI * i) / rows, (Math.PI * j) / rows];
        const ray = [
          Math.sin(latitude) * Math.cos(longitude),
          Math.sin(latitude) * Math.sin(longitude),
          Math.cos(latitude),
        ];
        axes.forEach((leaf, k) => (z[leaf] = ray[k]));
        const f = norm(small, z);
        return ray.map((value) => value / f);
      }),
    );
  }

  const unit = (n, ...ones) => Array.from({ length: n }, (_, k) => (ones.includes(k) ? 1 : 0));

  /** Planes that show what each exponent does, and the three coordinates that the surface is drawn over. */
  function views(root) {
    const n = size(root);
    const subspace = (leaf) => root.children.find((child) => child.leaves.includes(leaf));
    const shared = root.children.find((child) => inner(child) && size(child) > 1);
    const [b, c] = (shared ?? root).leaves;
    const others = root.leaves.filter((k) => k !== b && k !== c);
    const a = others.find((k) => subspace(k) !== subspace(b)) ?? others[0];
    const name = (k) => `z${subscript(k + 1)}`;
    const pair = (i, j) => ({
      label: `${name(i)}, ${name(j)}: ${subspace(i) === subspace(j) ? "one subspace" : "two subspaces"}`,
      names: [name(i), name(j)],
      at: [i, j],
      a: unit(n, i),
      b: unit(n, j),
    });
    const both = {
      label: `${name(a)}, ${name(b)} = ${name(c)}`,
      names: [name(a), `${name(b)} = ${name(c)}`],
      at: [a, b],
      a: unit(n, a),
      b: unit(n, b, c),
    };
    return { planes: [pair(b, c), pair(Math.min(a, b), Math.max(a, b)), both], axes: [a, b, c].sort((i, j) => i - j) };
  }

  const subscript = (k) => [...String(k)].map((digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]).join("");

  return {
    lgamma, tree, nodes, size, logNorm, norm, logSurface, logNormaliser, logProb, entropy, logRadial, absoluteMoment,
    squareCorrelation, sample, section, mesh, views, subscript,
  };
})();

Explorers.define("prior", (explorer, data) => {
  "use strict";
  const { fixed, plain } = Explorers;
  const Prior = Explorers.prior;
  const DEPTHS = Array.from({ length: 12 }, (_, k) => k + 0.5); // of the contours, in nats below the mode

  const trees = data.trees.map(({ label, structure }, value) => ({ label, structure, value }));
  const build = ({ structure }) => {
    const all = Prior.nodes(Prior.tree(structure, []));
    return Prior.tree(structure, all.map((_, i) => (i ? p1.value : p0.value)));
  };

  const shape = explorer.choice({ name: "tree", label: "subspaces", options: trees, value: 0 });
  const p0 = explorer.slider({ name: "p0", label: "p₀", hint: "at the root", stops: data.stops, value: data.p0 });
  const p1 = explorer.slider({ name: "p1", label: "p₁", hint: "below it", stops: data.stops, value: data.p1 });
  const plane = explorer.choice({ name: "plane", label: "plane", options: [] });
  const turn = explorer.slider({
    name: "turn", label: "turn", hint: "the surface", min: 0, max: 360, step: 2, value: 38, format: (x) => `${x}°`,
  });
  const tilt = explorer.slider({
    name: "tilt", label: "tilt", hint: "the surface", min: -90, max: 90, step: 2, value: 22, format: (x) => `${fixed(x, 0)}°`,
  });
  let seed = 1;
  explorer.buttons("Settings and samples", [
    ...data.presets.map(([label, first, second]) => ({
      label,
      action: () => ([p0.value, p1.value] = [first, second]),
    })),
    { label: "new samples", action: () => (seed += 1) },
  ]);

  const now = {};

  const surface = explorer.panel({
    title: "Surface f(z) = 1",
    draw: (pen) => drawSurface(pen),
    turn: (across, up) => {
      turn.value = (turn.value - 180 * across + 360) % 360;
      tilt.value = Math.min(90, Math.max(-90, tilt.value + 120 * up));
    },
  });
  const density = explorer.panel({
    title: "Section of the density",
    legend: [["contours", "blue"], ["f(z) = 1", "vermilion"]],
    draw: (pen) => {
      const plot = pen.axes(now.square);
      const reach = (depth) => Math.pow(depth * data.scale, 1 / p0.value);
      for (const depth of [...DEPTHS].reverse()) {
        const curve = now.section.map(([u, v]) => [u * reach(depth), v * reach(depth)]);
        plot.area(curve, "blue", 0.1);
        plot.line(curve, "blue", { width: 0.9, closed: true, alpha: 0.8 });
      }
      plot.line(now.section, "vermilion", { width: 2, closed: true });
    },
  });
  const cloud = explorer.panel({
    title: `${data.samples.toLocaleString("en")} samples`,
    draw: (pen) => {
      const plot = pen.axes(now.square);
      plot.dots(now.points, "blue", { radius: pen.small ? 1 : 1.4, alpha: 0.45 });
    },
  });
  const radius = explorer.panel({
    title: "Their radii",
    legend: [["samples", "sky"], ["Eq. 11", "vermilion"]],
    draw: (pen) => {
      const { edges, heights, curve, top } = now.radius;
      const plot = pen.axes({ x: [0, edges.at(-1)], y: [0, 1.06 * top], xlabel: "v₀ = f(z)", ylabel: pen.small ? "" : "density" });
      heights.forEach((height, k) => {
        const [a, b] = [edges[k], edges[k + 1]];
        if (height) plot.area([[a, 0], [a, height], [b, height], [b, 0]], "sky", 0.75);
      });
      plot.line(curve, "vermilion");
    },
  });
  const table = explorer.numbers([
    { name: "logSurface", label: "log surface log S(1), Eq. 8", digits: 4 },
    { name: "mode", label: "log density at 0", digits: 4 },
    { name: "entropy", label: "entropy in nats", digits: 4 },
    { name: "variance", label: "variance", digits: 4 },
    { name: "kurtosis", label: "excess kurtosis", digits: 3 },
    { name: "together", label: "correlation", digits: 4 },
  ]);

  function project([x, y, z]) {
    const [a, e] = [(Math.PI * turn.value) / 180, (Math.PI * tilt.value) / 180];
    const ahead = Math.cos(a) * x + Math.sin(a) * y;
    return [
      Math.cos(a) * y - Math.sin(a) * x,
      Math.cos(e) * z - Math.sin(e) * ahead,
      Math.cos(e) * ahead + Math.sin(e) * z,
    ];
  }

  function drawSurface(pen) {
    const { width, height, context } = pen;
    const unit = Math.min(width, height) / 2 / 1.75;
    const screen = ([u, v]) => [width / 2 + unit * u, height / 2 - unit * v];
    const reach = 1.35;
    const ends = [0, 1, 2].map((k) => [0, 1, 2].map((j) => (j === k ? 1 : 0)));
    const axis = (from, to) => {
      pen.path([screen(project(from)), screen(project(to))]);
      pen.stroke("grey", { width: 1.2 });
    };
    const times = (end, factor) => end.map((value) => factor * value);
    ends.forEach((end) => axis(times(end, -reach), times(end, reach)));
    // facets from the back to the front, lit from the viewer's upper left
    const seen = now.mesh.map((row) => row.map(project));
    const facets = [];
    for (let i = 0; i + 1 < seen.length; i++)
      for (let j = 0; j + 1 < seen[i].length; j++) {
        const [a, b, c, d] = [seen[i][j], seen[i + 1][j], seen[i + 1][j + 1], seen[i][j + 1]];
        const [p, q] = [[0, 1, 2].map((k) => c[k] - a[k]), [0, 1, 2].map((k) => d[k] - b[k])];
        const cross = [p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]];
        const length = Math.hypot(...cross);
        if (cross[2] <= 0 || length === 0) continue;
        const light = Math.max(0, (-0.45 * cross[0] + 0.6 * cross[1] + 0.66 * cross[2]) / length);
        facets.push({ depth: a[2] + b[2] + c[2] + d[2], corners: [a, b, c, d], light });
      }
    facets.sort((one, two) => one.depth - two.depth);
    const blue = [1, 3, 5].map((at) => parseInt(pen.colours.blue.slice(at, at + 2), 16));
    for (const { corners, light } of facets) {
      const mixed = blue.map((c) => Math.round(light > 0.3 ? c + (255 - c) * 0.85 * (light - 0.3) : c * (0.64 + 1.2 * light)));
      context.fillStyle = context.strokeStyle = `rgb(${mixed})`;
      context.lineWidth = 0.7;
      pen.path(corners.map(screen), true);
      context.fill();
      context.stroke();
    }
    ends.forEach((end, k) => {
      const tip = Math.max(...now.mesh.flat().map((point) => point[k]));
      for (const side of [1, -1]) if (side * project(end)[2] > 0) axis(times(end, side * tip), times(end, side * reach));
      pen.text(`z${Prior.subscript(now.axes[k] + 1)}`, ...screen(project(times(end, 1.13 * reach))), { halo: true });
    });
  }

  let shown;
  let drawn = "";
  explorer.update = () => {
    const root = build(trees[shape.value]);
    const n = Prior.size(root);
    const { planes, axes } = Prior.views(root);
    if (shown !== shape.value) {
      shown = shape.value;
      plane.offer(planes.map(({ label }, value) => ({ label, value })), 0);
    }
    const setting = JSON.stringify([shape.value, p0.value, p1.value, plane.value, seed]);
    if (setting === drawn) return; // only the surface is turned
    drawn = setting;
    const chosen = planes[plane.value];
    const [a, b] = chosen.at;
    const scale = data.scale;
    const moment = (leaf, order) => Prior.absoluteMoment(root, leaf, order, scale);
    const deviation = chosen.at.map((leaf) => Math.sqrt(moment(leaf, 2)));
    const limit = 3.3 * Math.max(...deviation);
    const both = chosen.b.map((value, k) => (value ? k : -1)).filter((k) => k >= 0);
    const z = Prior.sample(root, data.samples, scale, seed);
    const along = (point) => both.reduce((sum, k) => sum + point[k], 0) / both.length;
    const radii = z.map((point) => Prior.norm(root, point));
    const law = n / root.p;
    const last = Math.pow(scale * (law + 4.5 * Math.sqrt(law) + 2), 1 / root.p);
    const edges = Array.from({ length: 41 }, (_, k) => (last * k) / 40);
    const heights = new Array(40).fill(0);
    for (const v of radii) if (v < last) heights[Math.floor((40 * v) / last)] += 40 / last / radii.length;
    const curve = Array.from({ length: 241 }, (_, k) => {
      const v = (last * Math.max(k, 0.01)) / 240;
      return [v, Math.exp(Prior.logRadial(root, v, scale))];
    });
    const [across, up] = chosen.names;
    Object.assign(now, {
      root,
      axes,
      mesh: Prior.mesh(root, axes),
      section: Prior.section(root, chosen.a, chosen.b),
      points: z.map((point) => [point[a], along(point)]),
      radius: { edges, heights, curve, top: Math.max(...heights, ...curve.map(([, y]) => y)) },
      square: { x: [-limit, limit], y: [-limit, limit], equal: true, xlabel: across, ylabel: up },
    });
    const values = {
      logSurface: Prior.logSurface(root),
      mode: -Prior.logNormaliser(root, scale),
      entropy: Prior.entropy(root, scale),
      variance: moment(a, 2),
      kurtosis: moment(a, 4) / moment(a, 2) ** 2 - 3,
      together: Prior.squareCorrelation(root, a, b, scale),
    };
    const name = (k) => `z${Prior.subscript(k + 1)}`;
    table.set(values);
    table.name("variance", `variance of ${name(a)}`);
    table.name("kurtosis", `excess kurtosis of ${name(a)}`);
    table.name("together", `correlation of ${name(a)}² and ${name(b)}²`);
    const diagonal = now.section[90];
    const waist = Math.hypot(diagonal[0] / now.section[0][0], diagonal[1] / now.section[180][1]); // 1 for an ellipse
    let form = waist < 1 ? "drawn in between the axes" : "pushed out between the axes";
    if (Math.abs(waist - 1) < 0.002) form = "round";
    const bond = Math.abs(values.together) < 5e-5 ? "independent" : "dependent";
    const mean = radii.reduce((sum, v) => sum + v, 0) / radii.length;
    surface.describe(`over ${axes.map(name).join(", ")}`);
    density.describe(`over ${across} and ${up}, the other coordinates 0: ${form}; contours one nat apart`);
    cloud.describe(`over ${across} and ${up}`);
    radius.describe(`mean radius ${fixed(mean, 2)}`);
    explorer.describe(
      `Subspaces ${trees[shape.value].label} with p₀ = ${plain(p0.value)}, p₁ = ${plain(p1.value)}, ${n} coordinates. ` +
        `In the plane of ${across} and ${up} the surface is ${form}. ` +
        `${name(a)} and ${name(b)} are ${bond} (correlation of their squares ${fixed(values.together, 3)}). ` +
        `The samples' mean radius is ${fixed(mean, 2)}.`,
    );
  };
});
