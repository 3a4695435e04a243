"""Random posteriors, and the densities of their mixture from the full table."""

import torch
from torch.distributions import Normal


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, spread: float = 1.0, level: float = -1.0):
    """Return samples, means and log-variances of random posteriors."""
    mean, log_var = draw(*shape, seed=seed), spread * draw(*shape, seed=seed + 1) + level
    z = mean + torch.exp(0.5 * log_var) * draw(*shape, seed=seed + 2)
    return z.to(dtype), mean.to(dtype), log_var.to(dtype)


def log_density_table(z, mean, log_var):
    """Return log q(z_i|x_m) dimension by dimension, shape (..., B, M, D)."""
    std = torch.exp(0.5 * log_var).unsqueeze(-3)
    return Normal(mean.unsqueeze(-3), std).log_prob(z.unsqueeze(-2))


def weight_matrix(b: int, own: float, other: float) -> torch.Tensor:
    """Return the (B, B) weights of images for samples of the aggregate posterior."""
    return torch.full((b, b), other, dtype=torch.float64).fill_diagonal_(own)


def exact(z, mean, log_var, own, other):
    """Return log q(z_i) and log q(z_ij) for weights of the own image and of each other one, from the full table."""
    table = log_density_table(z, mean, log_var)
    log_weights = weight_matrix(z.shape[-2], own, other).to(table).log()
    joint = torch.logsumexp(table.sum(-1) + log_weights, -1)
    return joint, torch.logsumexp(table + log_weights.unsqueeze(-1), -2)
