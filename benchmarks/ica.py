"""Speed of ICA's variational inference: ``python benchmarks/ica.py``.

The straightforward way integrates the cross-entropy and its slopes with ``scipy.integrate.quad``, one data point and
one source at a time, and hands all of it to scipy's L-BFGS. It runs on few data points and is scaled by their number.
Both must end at the same free energy. Set ``OMP_NUM_THREADS=1`` for times on one core.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import numpy as np
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import t

from isa.toys import ica

NOISE, DOF = 0.05, 3.5
W = ica.directions([30.0, 90.0, 150.0])


def slowly(mean: float, sd: float) -> tuple[float, float, float]:
    """E log(1 + z^2 / v) and its derivatives in the mean and in log sd, by adaptive quadrature."""
    edges = sorted({-9.0, 9.0, *(p for p in ((-mean - 2) / sd, -mean / sd, (2 - mean) / sd) if -9 < p < 9)})

    def integral(function) -> float:
        return sum(
            quad(lambda e: function(mean + sd * e, e) * np.exp(-0.5 * e * e), a, b, epsabs=1e-10, epsrel=1e-10)[0]
            for a, b in pairwise(edges)
        ) / np.sqrt(2 * np.pi)

    return (
        integral(lambda z, e: np.log1p(z * z / DOF)),
        integral(lambda z, e: 2 * z / (DOF + z * z)),
        integral(lambda z, e: 2 * z * sd * e / (DOF + z * z)),
    )


def straightforward(x: np.ndarray, start: ica.Fit) -> tuple[float, int]:
    """Free energy at convergence from the weights and posteriors of ``start``, and the number of evaluations."""
    n, (n_obs, k) = len(x), W.shape
    scale, constant = 0.5 * (DOF + 1), t.logpdf(0.0, DOF) + 0.5 * np.log(2 * np.pi * np.e)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat[: W.size].reshape(n_obs, k)
        mean, log_sd = flat[W.size :].reshape(2, n, k)
        value, d_weights, d_mean, d_log_sd = 0.0, np.zeros_like(W), np.zeros((n, k)), np.zeros((n, k))
        for i in range(n):
            residual = x[i] - weights @ mean[i]
            value += 0.5 * (residual @ residual / NOISE + n_obs * np.log(2 * np.pi * NOISE))
            d_weights -= np.outer(residual, mean[i]) / NOISE
            d_mean[i] -= weights.T @ residual / NOISE
            for j in range(k):
                var, square = np.exp(2 * log_sd[i, j]), weights[:, j] @ weights[:, j] / NOISE
                expected, slope_mean, slope_log_sd = slowly(mean[i, j], np.exp(log_sd[i, j]))
                value += 0.5 * square * var - log_sd[i, j] - constant + scale * expected
                d_weights[:, j] += weights[:, j] * var / NOISE
                d_mean[i, j] += scale * slope_mean
                d_log_sd[i, j] = square * var - 1 + scale * slope_log_sd
        return value, np.concatenate([d_weights.ravel(), d_mean.ravel(), d_log_sd.ravel()])

    flat = np.concatenate([start.W.ravel(), start.mean.ravel(), np.log(start.sd).ravel()])
    result = minimize(loss, flat, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-11, "gtol": 1e-7})
    return -result.fun, result.nfev


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="data points of the fast fit")
    parser.add_argument("--few", type=int, default=12, help="data points of the straightforward one")
    chosen = parser.parse_args()

    x, _ = ica.sample(chosen.n, W, NOISE, DOF, seed=0)
    times = {}
    for beta in (1.0, 5.0):
        begin = time.perf_counter()
        result = ica.fit(x, W, NOISE, DOF, beta)
        times[beta] = time.perf_counter() - begin
        print(
            f"fit, N = {chosen.n}, K = 3, beta = {beta:g}: {times[beta]:.2f} s, {result.n_iter} steps, "
            f"converged: {result.converged}, F = {result.free_energy[-1]:.4f} nats"
        )

    few = x[: chosen.few]
    ours = ica.fit(few, W, NOISE, DOF, tol=1e-12)
    # One step is enough to have posteriors in the same modes; from there on the two go their own ways.
    start = ica.fit(few, W, NOISE, DOF, max_iter=1)
    begin = time.perf_counter()
    value, evaluations = straightforward(few, start)
    slow = (time.perf_counter() - begin) * chosen.n / chosen.few
    relative = abs(value - ours.free_energy[-1]) / abs(value)
    print(f"straightforward, N = {chosen.few}: {evaluations} evaluations, {slow:.0f} s when scaled to N = {chosen.n}")
    print(f"  F = {value:.8f} against {ours.free_energy[-1]:.8f}: relative difference {relative:.1e}")
    print(f"  {slow / times[1.0]:.0f} times as long as the fit")
    if relative > 1e-6:
        raise SystemExit("the two free energies differ by more than 1e-6 relatively")


if __name__ == "__main__":
    main()
