r"""Four Triton kernels for the total correlation of beta-TCVAE on a GPU. None stores the B x B x D densities.

:func:`total_correlation` is the CUDA kernel of the operator in :mod:`isa.aggregate`. Exponents are in bits: with
:math:`s_{md}^2 = \log_2 e / (2 \sigma_{md}^2)` and :math:`t_{imd} = (z_{id} - \mu_{md}) s_{md}`, the log density of
sample i under the posterior of image m in latent d is :math:`o_{md} - t_{imd}^2`, where :math:`o_{md} \le 0` is its
maximum minus the largest maximum in the batch.

Each program works on one run, in tiles of fixed size and without atomic operations, so a run's result does not depend
on the other runs of its pack. Programs of the same run are scheduled together, so that its joint log densities (B, B)
stay in the GPU's cache.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

__all__ = ["TILES", "available", "enabled", "load", "total_correlation"]

enabled = True
"""Set to False to switch the kernels off."""

TILES = {
    "rows": {"ROWS": 64, "COLUMNS": 32},
    "joint": {"ROWS": 64, "COLUMNS": 32},
    "columns": {"GROUP": 4, "ROWS": 32, "COLUMNS": 32},
    "joint_rows": {"GROUP": 4, "ROWS": 32, "COLUMNS": 32},
}
"""Tile sizes by kernel: samples (rows), images (columns) and, in the last two, latents (group)."""


def available() -> bool:
    """Return True if the kernels are enabled and Triton is installed."""
    return enabled and importlib.util.find_spec("triton") is not None


@cache
def load() -> dict[str, Any]:
    """Return the kernels by name. Triton is imported in this function, since `isa` works without it."""
    global tl
    import triton
    import triton.language as tl

    functions = {"rows": _rows, "joint": _joint, "columns": _columns, "joint_rows": _joint_rows}
    return {name: triton.jit(function) for name, function in functions.items()}


def total_correlation(
    z: Tensor, mean: Tensor, log_var: Tensor, own: float, other: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return batch means of log q(z) and log q(z_j) for P runs, and the gradient of the total correlation.

    Parameters
    ----------
    z, mean, log_var
        Samples, posterior means and log-variances, float32, shape ``(P, B, D)``.
    own, other
        Weights in the aggregate posterior: of the image that a sample was drawn from, and of each other image.

    Returns
    -------
    tuple
        Joint ``(P,)``, marginals ``(P, D)``, and the gradient of their difference in ``z``, ``mean`` and ``log_var``,
        ``(P, 3, B, D)``.
    """
    runs, b, d = z.shape
    log2_e = 1 / math.log(2)
    samples, centre, half_log_var = (values.mT.contiguous() for values in (z, mean, 0.5 * log_var))
    peak = -half_log_var.amin(-1, keepdim=True)
    scale = math.sqrt(0.5 * log2_e) * torch.exp(-half_log_var)
    posterior = (samples, centre, scale, (-half_log_var - peak) * log2_e, math.log2(own / other))
    log_sum, of_z, sums = z.new_empty(runs, d, b), z.new_empty(runs, d, b), z.new_empty(3, runs, d, b)
    exponents, joint_log_sum = z.new_empty(runs, b, b), z.new_empty(runs, b)

    def launch(name: str, tiled: str, groups: int, *tensors: Tensor) -> None:
        constants = {"D": d, "B": b, "STRATIFIED": own != other, **TILES[name]}
        load()[name][(math.ceil(b / constants[tiled]), groups, runs)](*posterior, *tensors, **constants)

    with torch.cuda.device_of(z):
        launch("rows", "ROWS", d, log_sum, of_z)
        launch("joint", "ROWS", 1, exponents, joint_log_sum)
        groups = math.ceil(d / TILES["columns"]["GROUP"])
        launch("columns", "COLUMNS", groups, log_sum, exponents, joint_log_sum, sums)
        groups = math.ceil(d / TILES["joint_rows"]["GROUP"])
        launch("joint_rows", "ROWS", groups, exponents, joint_log_sum, of_z)
    level = peak[..., 0] - 0.5 * math.log(2 * math.pi)
    joint = joint_log_sum.mean(-1) / log2_e + level.sum(-1) + math.log(other)
    marginals = log_sum.mean(-1) / log2_e + level + math.log(other)
    zeroth, once, twice = sums
    gradient = [-2 * of_z / log2_e, 2 * scale * once / log2_e, twice / log2_e - 0.5 * zeroth]
    return joint, marginals, torch.stack(gradient, 1).mT.contiguous() / b


# The kernels are plain functions until `load` compiles them. Their tensors are contiguous float32: z, mean, scale s,
# offset o and the marginals' log sums (P, D, B), joint exponents (P, B, B) and their log sums (P, B). ``diagonal`` is
# log2(own / other). Grids are (tiles of the batch, groups of latents, runs).


def _rows(
    z, mean, scale, offset, diagonal, log_sum, of_z,
    D: tl.constexpr, B: tl.constexpr, STRATIFIED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store the log sum over m of 2^(o - t^2) for one latent, and the mean of t s weighted by these terms."""
    base = (tl.program_id(2).to(tl.int64) * D + tl.program_id(1)) * B
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sample = tl.load(z + base + i, i < B, 0.0)
    own = (sample - tl.load(mean + base + i, i < B, 0.0)) * tl.load(scale + base + i, i < B, 0.0)
    own = tl.load(offset + base + i, i < B, 0.0) - own * own
    # The sum contains the term of the sample's own image and no exponent exceeds 0, so this reference keeps the sum in
    # range without a search for the maximum ...
    reference = tl.minimum(own + 40.0, 0.0)
    if tl.min(own, 0) < -100.0:  # ... unless a sample lies far outside its own posterior.
        reference = tl.full([ROWS], -float("inf"), tl.float32)
        for start in range(0, B, COLUMNS):
            m = start + tl.arange(0, COLUMNS)
            t = sample[:, None] - tl.load(mean + base + m, m < B, 0.0)[None, :]
            t = t * tl.load(scale + base + m, m < B, 0.0)[None, :]
            exponent = tl.load(offset + base + m, m < B, -float("inf"))[None, :] - t * t
            reference = tl.maximum(reference, tl.max(exponent, 1))
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    slope = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, B, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        s = tl.load(scale + base + m, m < B, 0.0)[None, :]
        t = (sample[:, None] - tl.load(mean + base + m, m < B, 0.0)[None, :]) * s
        exponent = tl.load(offset + base + m, m < B, -float("inf"))[None, :] - reference[:, None]
        if STRATIFIED:
            exponent += tl.where(i[:, None] == m[None, :], diagonal, 0.0)
        p = tl.exp2(exponent - t * t)
        total += p
        slope += p * (t * s)
    summed = tl.sum(total, 1)
    tl.store(log_sum + base + i, tl.log2(summed) + reference, i < B)
    tl.store(of_z + base + i, tl.sum(slope, 1) / summed, i < B)


def _joint(
    z, mean, scale, offset, diagonal, joint, joint_log_sum,
    D: tl.constexpr, B: tl.constexpr, STRATIFIED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store the joint exponents, sums over latents of o - t^2, and their log sum over m, with a running maximum."""
    run = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    highest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, B, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        exponent = tl.zeros([ROWS, COLUMNS], tl.float32)
        for d in range(D):
            base = (run * D + d) * B
            t = tl.load(z + base + i, i < B, 0.0)[:, None] - tl.load(mean + base + m, m < B, 0.0)[None, :]
            t = t * tl.load(scale + base + m, m < B, 0.0)[None, :]
            exponent += tl.load(offset + base + m, m < B, -float("inf"))[None, :] - t * t
        if STRATIFIED:
            exponent += tl.where(i[:, None] == m[None, :], diagonal, 0.0)
        index = (run * B + i[:, None]) * B + m[None, :]
        tl.store(joint + index, exponent, (i < B)[:, None] & (m < B)[None, :])
        higher = tl.maximum(highest, tl.max(exponent, 1))
        total = total * tl.exp2(highest - higher) + tl.sum(tl.exp2(exponent - higher[:, None]), 1)
        highest = higher
    tl.store(joint_log_sum + run * B + i, tl.log2(total) + highest, i < B)


def _columns(
    z, mean, scale, offset, diagonal, log_sum, joint, joint_log_sum, sums,
    D: tl.constexpr, B: tl.constexpr, STRATIFIED: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store sums (3, P, D, B) over i of g, g t and g t^2; g is the joint share of image m minus its marginal share."""
    run = tl.program_id(2).to(tl.int64)
    d = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    base = ((run * D + d) * B)[:, None]
    index, inside = base + m[None, :], (d < D)[:, None] & (m < B)[None, :]
    centre = tl.load(mean + index, inside, 0.0)[:, None, :]
    s = tl.load(scale + index, inside, 0.0)[:, None, :]
    top = tl.load(offset + index, inside, 0.0)[:, None, :]
    zeroth = tl.zeros([GROUP, ROWS, COLUMNS], tl.float32)
    once = tl.zeros([GROUP, ROWS, COLUMNS], tl.float32)
    twice = tl.zeros([GROUP, ROWS, COLUMNS], tl.float32)
    for start in range(0, B, ROWS):
        i = start + tl.arange(0, ROWS)
        shared = (i < B)[:, None] & (m < B)[None, :]
        exponent = tl.load(joint + (run * B + i[:, None]) * B + m[None, :], shared, -float("inf"))
        q = tl.exp2(exponent - tl.load(joint_log_sum + run * B + i, i < B, 0.0)[:, None])[None, :, :]
        samples, valid = base + i[None, :], (d < D)[:, None] & (i < B)[None, :]
        t = (tl.load(z + samples, valid, 0.0)[:, :, None] - centre) * s
        exponent = top - tl.load(log_sum + samples, valid, float("inf"))[:, :, None]
        if STRATIFIED:
            exponent += tl.where(i[None, :, None] == m[None, None, :], diagonal, 0.0)
        g = q - tl.exp2(exponent - t * t)
        zeroth += g
        once += g * t
        twice += g * t * t
    whole = tl.num_programs(2).to(tl.int64) * D * B
    tl.store(sums + index, tl.sum(zeroth, 1), inside)
    tl.store(sums + whole + index, tl.sum(once, 1), inside)
    tl.store(sums + 2 * whole + index, tl.sum(twice, 1), inside)


def _joint_rows(
    z, mean, scale, offset, diagonal, joint, joint_log_sum, of_z,
    D: tl.constexpr, B: tl.constexpr, STRATIFIED: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Subtract the marginals' mean of t s, in ``of_z``, from the mean weighted by the joint shares."""
    run = tl.program_id(2).to(tl.int64)
    d = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    base = ((run * D + d) * B)[:, None]
    index, inside = base + i[None, :], (d < D)[:, None] & (i < B)[None, :]
    sample = tl.load(z + index, inside, 0.0)[:, :, None]
    log_total = tl.load(joint_log_sum + run * B + i, i < B, 0.0)[:, None]
    slope = tl.zeros([GROUP, ROWS, COLUMNS], tl.float32)
    for start in range(0, B, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        shared = (i < B)[:, None] & (m < B)[None, :]
        exponent = tl.load(joint + (run * B + i[:, None]) * B + m[None, :], shared, -float("inf"))
        q = tl.exp2(exponent - log_total)[None, :, :]
        images, valid = base + m[None, :], (d < D)[:, None] & (m < B)[None, :]
        s = tl.load(scale + images, valid, 0.0)[:, None, :]
        slope += q * ((sample - tl.load(mean + images, valid, 0.0)[:, None, :]) * s * s)
    tl.store(of_z + index, tl.sum(slope, 2) - tl.load(of_z + index, inside, 0.0), inside)
