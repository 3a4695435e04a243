"""The Lp-nested symmetric distribution (Sec. 3, Eq. 7-11, Algorithm 1), and its maximum-likelihood fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma, Independent, Normal, constraints, register_kl

from isa.prior.tree import Node, log_magnitude

__all__ = ["Fit", "LpNested", "kl_monte_carlo"]


class LpNested(Distribution):
    r"""Lp-nested distribution (Eq. 7), by default with the radial density that makes subspaces independent (Eq. 11).

    With :math:`p_0` the exponent of the root, s the scale and n the number of leaves,

    .. math::

        p(z) &= \frac{\psi_0(f(z))}{f(z)^{n-1}\, S_f(1)}, \\
        \psi_0(v) &= \frac{p_0\, v^{n-1}}{\Gamma(n/p_0)\, s^{n/p_0}} \exp\left(-\frac{v^{p_0}}{s}\right), \\
        \log p(z) &= -\frac{f(z)^{p_0}}{s} - \log Z, \\
        \log Z &= \log S_f(1) + \log\Gamma\left(\tfrac{n}{p_0}\right) + \tfrac{n}{p_0}\log s - \log p_0 .

    Parameters
    ----------
    tree : Node
        The Lp-nested function f. Its exponents may be tensors, with gradients and a batch shape.
    scale : float, Tensor or "unit"
        s of Eq. 11. ``"unit"`` is the s for which every coordinate has variance 1, if it exists.
    radial : Distribution, optional
        Density on the positive reals in place of Eq. 11.

    Notes
    -----
    Methods use the current values of tensors, as in ``Normal(0.0, parameter)``. Parameters that are numbers take the
    dtype and the device of z; if all are numbers, samples have the default ones. Half precision is evaluated in
    float32, normalisers in float64. First and second derivatives with respect to ``z_j`` are 0 at ``z_j = 0``;
    derivatives are undefined where f(z)^p0 overflows.

    References
    ----------
    Sinz and Bethge (2010), "Lp-nested symmetric distributions", Journal of Machine Learning Research 11, 3409-3451.

    Examples
    --------
    >>> prior = LpNested(Node(2.0, 3), scale=2.0)  # N(0, I) in three dimensions
    >>> z = torch.tensor([0.5, -1.0, 2.0])
    >>> torch.isclose(prior.log_prob(z), Normal(0.0, 1.0).log_prob(z).sum())
    tensor(True)
    """

    arg_constraints: ClassVar = {
        "exponents": constraints.independent(constraints.positive, 1),
        "scale": constraints.positive,
    }
    support = constraints.real_vector
    has_rsample = True
    _BLOCK = 2**19  # coordinates that are sampled at once, which stay in a CPU's cache
    _constants: list[float] | None = None  # log s and log Z of a distribution of numbers

    def __init__(
        self,
        tree: Node,
        scale: float | Tensor | str = 1.0,
        *,
        radial: Distribution | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.tree, self.radial = tree, radial
        self._scale: float | Tensor = 1.0 if isinstance(scale, str) else scale
        tensors = [x for x in (*tree.exponents, scale) if isinstance(x, Tensor)]
        dtypes = [x.dtype for x in tensors] or [torch.get_default_dtype()]
        self._dtype = reduce(torch.promote_types, dtypes, torch.float32)
        self._device = tensors[0].device if tensors else torch.get_default_device()
        if isinstance(scale, str):
            if scale != "unit" or radial is not None:
                raise ValueError(f"scale must be a number, or 'unit' without a radial density, got {scale!r}")
            log_variance = self._log_moment(2)
            if not torch.allclose(log_variance, log_variance[..., :1], rtol=0, atol=1e-6):
                variances = log_variance.exp().tolist()
                raise ValueError(f"scale = 'unit'; coordinates of {tree} differ in variance: {variances}")
            unit = (-0.5 * tree.p * log_variance[..., 0]).exp()
            self._scale = unit if tensors else unit.item()
        if not tensors and not torch.compiler.is_compiling():
            self._constants = [x.item() for x in self._parameters(torch.float64, torch.device("cpu"))[1:]]
        batch = torch.broadcast_shapes(*(x.shape for x in tensors), () if radial is None else radial.batch_shape)
        super().__init__(batch, torch.Size([tree.n_leaves]), validate_args=validate_args)

    def __repr__(self) -> str:
        other = f"scale={self._scale!r}" if self.radial is None else f"radial={self.radial!r}"
        return f"LpNested('{self.tree}', {other})"

    def expand(self, batch_shape: Sequence[int], _instance: LpNested | None = None) -> LpNested:
        new = self._get_checked_instance(LpNested, _instance)
        new.__dict__.update(self.__dict__)
        new.radial = None if self.radial is None else self.radial.expand(torch.Size(batch_shape))
        super(LpNested, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def exponents(self) -> Tensor:
        """Exponents of all inner nodes, the root's first, ``(*batch_shape, nodes)``."""
        return self.tree.stacked(self._dtype, self._device).movedim(0, -1).expand(*self.batch_shape, -1)

    @property
    def scale(self) -> Tensor:
        """s of Eq. 11, ``batch_shape``; 1 and without effect with another radial density."""
        return self._narrow(self._parameters(torch.float64, self._device)[1].exp())

    @property
    def subspaces(self) -> tuple[tuple[int, ...], ...]:
        """Coordinates of each subspace (Eq. 10), one for each child of the root; independent under Eq. 11."""
        return self.tree.subspaces

    def _parameters(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the exponents ``(nodes, ...)``, log s, and log Z (log S_f(1) for a radial density).

        Those of a distribution of numbers have the dtype, others float64.
        """
        if self._constants is not None:
            p = self.tree.stacked(dtype, device)
            log_scale, log_z = (p.new_full((), value) for value in self._constants)
            return p, log_scale, log_z
        p, n = self.tree.stacked(torch.float64, device), self.tree.n_leaves
        log_scale = (self._scale.to(p) if isinstance(self._scale, Tensor) else p.new_full((), self._scale)).log()
        log_z = self.tree.log_surface(p)
        if self.radial is None:
            log_z = log_z + torch.lgamma(n / p[0]) + n / p[0] * log_scale - p[0].log()
        return p, log_scale, log_z

    def _narrow(self, x: Tensor, *event: int) -> Tensor:
        """Return a parameter, moment or entropy in the precision and with the batch shape of the distribution."""
        return x.to(self._device, self._dtype).expand((*self.batch_shape, *event))

    def norm(self, z: Tensor) -> Tensor:
        """Return f(z) (Eq. 6, 9); z has shape ``(..., n)``."""
        return self.tree.norm(z)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density (Eq. 7) in nats at ``value`` ``(..., n)``; minus infinity where it underflows."""
        if self._validate_args and value.numel():
            self._validate_sample(value)
        z = value.to(torch.promote_types(value.dtype, torch.float32))
        z = z.expand(*torch.broadcast_shapes(z.shape[:-1], self.batch_shape), -1)
        p, log_scale, log_z = (x.to(z) for x in self._parameters(z.dtype, z.device))
        if self.radial is None:
            values = self.tree.log_values(log_magnitude(z), p)
            return -(p[0] * values - log_scale).exp().sum(0) - log_z
        # at f = 0 the density is the limit from above, at the smallest positive float
        log_f = self.tree.log_norm(log_magnitude(z), p).clamp(min=math.log(torch.finfo(z.dtype).tiny))
        f = log_f.exp()
        support: Any = self.radial.support
        bounds = getattr(support, "base_constraint", support)  # that of the components of a mixture
        inside = f.clamp(bounds.lower_bound, getattr(bounds, "upper_bound", None))
        log_radial = torch.where(support.check(f), self.radial.log_prob(inside).to(z.dtype), -math.inf)
        return log_radial - (self.tree.n_leaves - 1) * log_f - log_z

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return exact samples (Algorithm 1) without gradients."""
        shape = torch.Size(sample_shape)
        count, block = shape.numel(), max(1, self._BLOCK // max(1, self._extended_shape().numel()))
        with torch.no_grad():
            if self._device.type != "cpu" or torch.compiler.is_compiling() or count <= block:
                return self.rsample(shape)
            parts = [self.rsample((min(block, count - start),)) for start in range(0, count, block)]
        return torch.cat(parts).reshape(self._extended_shape(shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        r"""Return exact samples (Algorithm 1), differentiable in the exponents, the scale and the radial density.

        At each node the children's values are the parent's times Dirichlet variables to the power 1/p; with Eq. 11
        the root's are independent Gammas to that power. Gammas are drawn as logarithms, :math:`\log G_\alpha = \log
        G_{\alpha+1} + \alpha^{-1}\log U`, since those of the small shapes 1/p of large exponents underflow.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        p, nodes = self.exponents, list(self.tree.nodes())
        steps: dict[int, Tensor] = {}  # log(child / parent) of each node, (..., children)
        alike: dict[tuple[int, int], list[int]] = {}  # nodes that are drawn together, from the leaves up
        for i, node in enumerate(nodes):
            alike.setdefault((node.height, len(node.sizes)), []).append(i)
        for (_, width), group in sorted(alike.items()):
            independent = group == [0] and self.radial is None
            q = p[..., group, None]
            if width == 1 and not independent:
                log_powers = torch.zeros_like(q)
            else:
                alpha = torch.tensor([nodes[i].sizes for i in group], dtype=p.dtype, device=p.device) / q
                alpha = alpha.expand(*shape[:-1], len(group), width)
                uniform = 1 - torch.rand(alpha.shape, dtype=p.dtype, device=p.device)  # in (0, 1]
                log_gamma = Gamma(alpha + 1, 1.0, validate_args=False).rsample().log() + uniform.log() / alpha
                if independent:  # in logarithms: the scale has the size of |z|^p0
                    log_scale = self._narrow(self._parameters(torch.float64, self._device)[1])
                    log_powers = log_gamma + log_scale[..., None, None]
                else:
                    log_powers = log_gamma - log_gamma.logsumexp(-1, keepdim=True)
            steps |= zip(group, (log_powers / q).unbind(-2), strict=True)
        if self.radial is None:
            log_r = torch.zeros(shape[:-1], dtype=p.dtype, device=p.device)
        else:
            draw = self.radial.rsample if self.radial.has_rsample else self.radial.sample
            log_r = draw(torch.Size(sample_shape)).log().to(p)
        sign = torch.randint(0, 2, shape, device=p.device, dtype=torch.int8) * 2 - 1
        return _descend(self.tree, log_r[..., None], iter([steps[i] for i in range(len(nodes))])).exp() * sign

    def _log_moment(self, k: float) -> Tensor:
        """Return log E|z_j|^k ``(..., n)`` in float64."""
        p, log_scale, _ = self._parameters(torch.float64, self._device)
        if self.radial is None:
            log_moment = _log_gamma_moment(self.tree.n_leaves, k, p[0]) + k / p[0] * log_scale
        else:
            log_moment = (self.radial.variance + self.radial.mean.square()).log().to(p)
        # a leaf's share of f is a product of powers of independent Beta variables
        steps = []
        for node, q in zip(self.tree.nodes(), p[..., None], strict=True):
            sizes = torch.tensor(node.sizes, dtype=p.dtype, device=p.device)
            steps.append(_log_gamma_moment(sizes, k, q) - _log_gamma_moment(node.n_leaves, k, q))
        return _descend(self.tree, log_moment[..., None], iter(steps))

    def absolute_moment(self, order: float) -> Tensor:
        """Return E|z_j|^k of every coordinate, ``(*batch_shape, n)``, for k > -1; with another radial density k = 2."""
        if self.radial is not None and order != 2:
            raise NotImplementedError("with another radial density only the second moment has a closed form")
        return self._narrow(self._log_moment(order).exp(), -1)

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self._extended_shape(), dtype=self._dtype, device=self._device)

    @property
    def variance(self) -> Tensor:
        """Variance of each coordinate, ``(*batch_shape, n)``; coordinates are uncorrelated."""
        return self.absolute_moment(2)

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, ``n / p0 + log Z``, for Eq. 11."""
        if self.radial is not None:
            raise NotImplementedError("the entropy has a closed form for Eq. 11 only; use -log_prob(sample).mean()")
        p, _, log_z = self._parameters(torch.float64, self._device)
        return self._narrow(self.tree.n_leaves / p[0] + log_z)

    def marginal(self, subspace: int) -> LpNested:
        """Return the distribution of one subspace: the root's exponent above its tree, and the same scale."""
        if self.radial is not None:
            raise NotImplementedError("the marginal of a subspace has a closed form for Eq. 11 only")
        tree = Node(self.tree.p, [self.tree.branches[subspace]])
        return LpNested(tree, self._scale, validate_args=self._validate_args).expand(self.batch_shape)

    @staticmethod
    def fit(tree: Node, z: Tensor | np.ndarray) -> Fit:
        """Return the maximum-likelihood fit to samples z ``(N, n)``.

        The search starts from the tree's exponents, which must be numbers. L-BFGS finds their logarithms in float64,
        from 0.05 to 500, or the root's to where the scale is in range; the scale has a closed form given them. The unit
        of z affects the scale only. Below the root, a node with one child has no influence and keeps its exponent.
        """
        z = (z.detach() if isinstance(z, Tensor) else torch.tensor(z)).double().cpu()
        count, n = z.shape
        unit = z.abs().max()  # of the fit: no coordinate is beyond 1, so that powers do not overflow
        if not 0 < unit < math.inf:
            raise ValueError("z must be finite, without NaN, and not zero everywhere")
        log_unit, log_z = unit.log().item(), log_magnitude(z / unit)
        start = torch.tensor([*tree.exponents, 1.0], dtype=torch.float64)  # exponents and scale

        def fitted(x: Tensor) -> LpNested:
            """Return the distribution whose parameters are ``exp(x)`` times the start."""
            *p, scale = (start * x.exp()).unbind()
            return LpNested(tree.with_exponents(p), scale, validate_args=False)

        def with_best_scale(x: Tensor) -> Tensor:
            p = start[:-1] * x.exp()
            log_scale = torch.logsumexp(p[0] * tree.log_norm(log_z, p), 0) - (n * count / p[0]).log()
            return torch.cat([x, log_scale[None]])

        def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
            """Return the mean of -log p at the best scale, where it is the entropy, and its gradient."""
            x = torch.tensor(values, requires_grad=True)
            value = fitted(with_best_scale(x)).entropy()
            return value.item(), torch.autograd.grad(value, x)[0].numpy()

        free = np.array([i == 0 or len(node.sizes) > 1 for i, node in enumerate(tree.nodes())])
        bounds = free * np.log(np.outer([0.05, 500], 1 / start[:-1]))
        bounds[1, 0] = np.log(min(500, 600 / max(1.0, abs(log_unit))) / tree.p)  # log s is about p0 log_unit
        options = {"ftol": 1e-15, "gtol": 1e-8, "maxiter": 500}
        search = {"jac": True, "method": "L-BFGS-B", "bounds": bounds.T, "options": options}
        optimum = scipy.optimize.minimize(objective, np.zeros(bounds.shape[1]), **search)
        x = with_best_scale(torch.tensor(optimum.x))
        inner = torch.tensor([*(bounds[0] < optimum.x) & (optimum.x < bounds[1]), True])
        errors = torch.tensor([*np.where(free, math.nan, 0.0), math.nan])
        information = torch.autograd.functional.hessian(lambda x: -fitted(x).log_prob(z / unit).sum(), x)
        slopes = torch.eye(len(x), dtype=x.dtype)  # of the logarithms of the parameters, in the unit of z
        slopes[-1, 0] = log_unit * start[0] * x[0].exp()
        x[-1] += slopes[-1, 0]
        information, slopes = (matrix[inner][:, inner] for matrix in (information, slopes))
        covariance = slopes @ torch.linalg.pinv(information, hermitian=True) @ slopes.T
        errors[inner] = covariance.diagonal().clamp(min=0).sqrt()
        *p, scale = (start * x.exp()).tolist()
        *exponent_errors, scale_error = (errors * start * x.exp()).tolist()
        converged = bool(np.abs(optimum.jac[inner[:-1].numpy()]).max(initial=0) < 1e-5)
        result = LpNested(tree.with_exponents(p), scale)
        return Fit(result, result.log_prob(z).sum().item(), tuple(exponent_errors), scale_error, converged)


@dataclass(frozen=True)
class Fit:
    """A maximum-likelihood fit: the distribution, and standard errors from the observed information.

    An error is 0 for an exponent without influence, and NaN for one on a bound, beyond which the likelihood increases.
    """

    distribution: LpNested
    log_likelihood: float  #: Total over the samples, in nats.
    exponent_errors: tuple[float, ...]  #: In the order of :meth:`isa.Node.nodes`.
    scale_error: float
    converged: bool  #: False if the optimiser stopped before the gradient vanished.


def _descend(node: Node, value: Tensor, steps: Iterator[Tensor]) -> Tensor:
    """Return log values of the leaves ``(..., n)`` below a node of log value ``(..., 1)``.

    ``steps`` are the differences ``(..., children)`` of all nodes in their order.
    """
    parts = (value + next(steps)).split([1 if isinstance(child, Node) else child for child in node.children], -1)
    below = zip(node.children, parts, strict=True)
    return torch.cat([_descend(child, x, steps) if isinstance(child, Node) else x for child, x in below], -1)


def _log_gamma_moment(size: int | Tensor, k: float, p: Tensor) -> Tensor:
    """Return log E[G^(k/p)] of a Gamma variable G of shape ``size / p``."""
    return torch.lgamma((size + k) / p) - torch.lgamma(size / p)


@register_kl(Distribution, LpNested)
def kl_monte_carlo(p: Distribution, q: Distribution) -> Tensor:
    """Return KL(p || q) in nats as the mean of log p - log q over samples of p, 10,000 in total over the batch shape.

    It is differentiable where p has ``rsample``. For the loss of a VAE one sample of each posterior is enough (Eq. 12,
    :func:`isa.objectives.kl_monte_carlo`).
    """
    p = p.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))
    count = max(1, 10_000 // max(1, p.batch_shape.numel()))
    z = (p.rsample if p.has_rsample else p.sample)(torch.Size([count]))
    return (p.log_prob(z) - q.log_prob(z)).mean(0)


@register_kl(LpNested, Independent)
def _kl_from_lpnested(p: LpNested, q: Independent) -> Tensor:
    """Return the closed form for a diagonal normal q: coordinates of p are centred and uncorrelated."""
    base = q.base_dist
    if not isinstance(base, Normal) or p.radial is not None:
        return kl_monte_carlo(p, q)
    cross = 0.5 * ((p.variance + base.loc.square()) / base.scale.square() + (2 * math.pi * base.scale.square()).log())
    return cross.sum(-1) - p.entropy()
