r"""From a :class:`Run` to a trained and measured model (Sec. 4, Tables 1 and 2).

::

    run = Run(dataset="dsprites", objective="isa-vae", beta=1.0, seed=0)
    result = train(run)
    result.record["mig"], result.record["log_likelihood"]
    result.save("trained/first")

**What determines a run.** Every choice that changes the result is a field of :class:`Run`, and ``run.hash`` is a hash
of these. Initial parameters, order of the images and noise are drawn from generators of the run's own, seeded by its
seed and by what they are drawn for, so that a run is the same, whatever ran before it and whatever trains beside it.

**Packs.** ``train_pack`` trains runs of one shape at once: parameters are stacked to ``(P, ...)``, images and noise
too, and one set of kernels serves all. No operation mixes runs, so that each is trained as if alone up to rounding, and
one that diverges spoils no other.

**Divergence.** A run has diverged where a term of its objective is no finite number or its loss stays out of bounds,
and where its parameters after the last step, or what is measured of it, are not finite. Its record says so and at which
step, and has no measurements. Whatever is recorded is a finite number.

**Precision.** With ``precision="bf16"`` linear and convolutional layers compute in bfloat16, as under autocast;
parameters, Adam's moments, normalisation, posterior, sample, prior and every term of the objective are float32.

**The same again.** On one machine, with as many threads, a run gives the same result bit for bit; so does one that was
interrupted and went on from its checkpoint, since batches and noise are functions of seed and step alone.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.func import functional_call, vmap
from tqdm import tqdm

from isa import data, models, objectives
from isa._files import write_atomically
from isa.data import FactorDataset
from isa.lpnested import LpNested, Node
from isa.mig import _LOG_VAR_LIMIT, MutualInformationGap, active_units, mutual_information_gap

__all__ = [
    "DEFAULTS",
    "OBJECTIVES",
    "CheckpointError",
    "Defaults",
    "DivergedError",
    "Evaluation",
    "Result",
    "Run",
    "evaluate",
    "load_model",
    "read_record",
    "remove_checkpoint",
    "train",
    "train_pack",
]

_logger = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# What a run is


@dataclass(frozen=True)
class Defaults:
    """What a :class:`Run` takes for fields left out, for one data set."""

    model: str
    latent_dim: int
    epochs: float
    subspaces: tuple[int, ...]
    p1: float
    """Exponent of the subspaces where exponents are fixed; learned ones start from 2."""
    images: int
    """Number of images, from which the number of steps of an epoch follows before anything is loaded."""
    scored: tuple[int, ...] | None
    """Factors that the MIG is over; all where None."""


DEFAULTS: dict[str, Defaults] = {
    "dsprites": Defaults("mlp", 20, 20, (4, 4, 4, 4, 4), 2.2, 737_280, (1, 2, 3, 4)),
    "faces3d": Defaults("mlp", 10, 1500, (4, 3, 3), 1.9, 127_050, (1, 2, 3)),
    "cars3d": Defaults("conv", 18, 1000, (6, 6, 6), 2.2, 17_568, None),
}
"""Tables 1 (dsprites) and 2 (faces3d), and Sec. 4. The paper prints no layout of subspaces for the ten latents of
faces3d: three, as in A.2. For cars3d it prints no hyperparameters: three subspaces of six, and epochs that make about
as many steps as on dSprites. The MIG leaves out dSprites' shape, as the paper does, and the identity of a face."""

OBJECTIVES: dict[str, str] = {
    "beta-vae": "beta-vae",
    "isa-vae": "beta-vae",
    "beta-tcvae": "beta-tcvae",
    "isa-tcvae": "beta-tcvae",
    "factor-vae": "factor-vae",
}
"""What is minimised, in ``isa.objectives.OBJECTIVES``, for each objective's name; an ISA prior goes with isa-."""

_FORMAT = 1
"""Part of every run's hash: to be raised by one where a change here changes what a run results in."""

_MOST_LATENTS = models.IMAGE_SIZE**2
_MOST_STEPS = 100_000_000
_MOST_RECORD_BYTES = 10_000_000
_FLOAT32 = torch.finfo(torch.float32)

_P0 = 2.1
_DISCRIMINATOR_RATE, _DISCRIMINATOR_BETAS = 1e-4, (0.5, 0.9)  # Kim and Mnih (2018)


def _choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _count(name: str, value: object, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least or (most is not None and value > most):
        span = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} must be {span}, got {value}")
    return int(value)


def _positive(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value}")
    if not _FLOAT32.tiny <= value <= _FLOAT32.max:  # it would be computed with as 0 or infinity
        raise ValueError(f"{name} must be from {_FLOAT32.tiny:.2g} to {_FLOAT32.max:.2g}, got {value}")
    return float(value)


def _weight(name: str, value: object) -> float:
    """Check a number that may be 0 as well."""
    if isinstance(value, Real) and not isinstance(value, bool) and value == 0:
        return 0.0  # also of -0.0, so that it has one hash
    if isinstance(value, Real) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    return _positive(name, value)


@dataclass(frozen=True)
class Run:
    """Everything that determines one training; checked as a whole when it is made, before any data is loaded.

    Fields left out take the data set's defaults (:data:`DEFAULTS`: Tables 1 and 2).

    Parameters
    ----------
    dataset
        ``"dsprites"``, ``"faces3d"`` or ``"cars3d"``.
    source
        Path of the published data, or None for the images that this package draws. Only whether there is one enters
        the hash: what lies at the path is checked when it is loaded.
    objective
        ``"beta-vae"`` (Eq. 2), ``"isa-vae"`` (Eq. 12), ``"beta-tcvae"`` (Eq. 3), ``"isa-tcvae"`` or ``"factor-vae"``.
    beta
        Weight of the divergence (beta-vae, isa-vae) or of the total correlation (the others; FactorVAE's gamma). At 0
        beta-vae and isa-vae train an autoencoder with noise, whose divergence is only reported.
    seed
        Seed of initial parameters, of the images' order and of all noise.
    prior
        ``"normal"``, N(0, I); ``"isa"``, given by ``subspaces``, ``p0`` and ``p1``; or the text of any tree, such as
        ``"2.1[5*2.2[4]]"``. By default what the objective's name says.
    subspaces, p0, p1
        Layout and exponents of the ISA prior; ``p1`` is one number, or one a subspace. With learned exponents they are
        where these start, for p1 by default 2.
    scale
        Scale s of Eq. 11, or ``"unit"`` for the scale at which every latent has variance 1.
    learn_exponents
        Learn all exponents but the root's with the networks.
    model
        ``"mlp"`` or ``"conv"``.
    latent_dim
        Number of latents; by default what the subspaces or the tree add up to, where one of them is given. At most
        4,096, as many as an image has pixels, beyond which there is nothing to compress.
    epochs
        Number of passes over the data. An incomplete last batch of an epoch is left out, so that all have one shape.
    steps
        Number of steps instead; it wins over ``epochs``. At most 100,000,000, by either: a thousand times the paper's
        longest training, since every term of every step is kept in memory.
    batch_size
        Images a step.
    learning_rate, exponent_learning_rate
        Adam's for the networks and for learned exponents.
    likelihood
        ``"bernoulli"`` or ``"gaussian"``, of a pixel.
    kl
        ``"monte_carlo"`` (one sample, Eq. 12) or ``"closed_form"`` (normal prior only; not for the TCVAE objectives).
    sampling
        Estimate of the aggregate posterior in the TCVAE objectives, ``"weighted"`` or ``"stratified"``.
    precision
        ``"bf16"`` or ``"fp32"``, of the networks' products.

    Raises
    ------
    TypeError, ValueError
        With one sentence that names the field, its value, and what is allowed.

    Examples
    --------
    >>> run = Run(objective="isa-vae", seed=3)
    >>> run.total_steps, str(run.tree), run.key.startswith("dsprites-isa-vae-1-seed3-")
    (7200, '2.1[5*2.2[4]]', True)
    """

    dataset: str = "dsprites"
    source: str | None = None
    objective: str = "beta-vae"
    beta: float = 1.0
    seed: int = 0
    prior: str | None = None
    subspaces: tuple[int, ...] | None = None
    p0: float | None = None
    p1: float | tuple[float, ...] | None = None
    scale: float | str | None = None
    learn_exponents: bool = False
    model: str | None = None
    latent_dim: int | None = None
    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 2048
    learning_rate: float = 1e-3
    exponent_learning_rate: float = 5e-4
    likelihood: str = "bernoulli"
    kl: str = "monte_carlo"
    sampling: str = "weighted"
    precision: str = "bf16"

    def __post_init__(self) -> None:
        _choice("dataset", self.dataset, data.NAMES)
        defaults = DEFAULTS[self.dataset]
        if self.source is not None:
            if not isinstance(self.source, (str, os.PathLike)):
                raise TypeError(f"source must be a path, got {self.source!r}")
            self._set(source=os.fspath(self.source))
        _choice("objective", self.objective, tuple(OBJECTIVES))
        self._set(
            beta=_weight("beta", self.beta),
            seed=_count("seed", self.seed, 0, 2**63 - 1),
            model=defaults.model if self.model is None else self.model,
            learning_rate=_positive("learning_rate", self.learning_rate),
            exponent_learning_rate=_positive("exponent_learning_rate", self.exponent_learning_rate),
            batch_size=_count("batch_size", self.batch_size, 1, defaults.images),
        )
        _choice("model", self.model, tuple(models.MODELS))
        _choice("likelihood", self.likelihood, tuple(objectives.LIKELIHOODS))
        _choice("kl", self.kl, ("monte_carlo", "closed_form"))
        _choice("sampling", self.sampling, ("weighted", "stratified"))
        _choice("precision", self.precision, ("bf16", "fp32"))
        if not isinstance(self.learn_exponents, bool):
            raise TypeError(f"learn_exponents must be True or False, got {self.learn_exponents!r}")
        if self.steps is not None:
            self._set(steps=_count("steps", self.steps, 1))
        self._set(epochs=float(defaults.epochs) if self.epochs is None else _positive("epochs", self.epochs))
        if self.total_steps > _MOST_STEPS:
            name = "epochs" if self.steps is None else "steps"
            raise ValueError(f"{name} must make at most {_MOST_STEPS:,} steps, got {getattr(self, name)}")
        self._set_prior(defaults)
        if self.latent_dim > _MOST_LATENTS:
            raise ValueError(f"latent_dim must be at most {_MOST_LATENTS:,}, got {self.latent_dim}")
        if self.kl == "closed_form" and (self.prior != "normal" or self.base == "beta-tcvae"):
            raise ValueError(
                "kl must be monte_carlo with an ISA prior and with the TCVAE objectives, got 'closed_form' "
                f"with prior {self.prior!r} and objective {self.objective!r}"
            )
        if self.sampling == "stratified" and self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 for sampling 'stratified', got {self.batch_size}")

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _set_prior(self, defaults: Defaults) -> None:
        named_isa = self.objective.startswith("isa-")
        prior = self.prior if self.prior is not None else "isa" if named_isa else "normal"
        if not isinstance(prior, str):
            raise TypeError(f"prior must be 'normal', 'isa' or the text of a tree, got {prior!r}")
        if named_isa and prior == "normal":
            raise ValueError(
                f"prior must be 'isa' or the text of a tree with objective {self.objective!r}, got 'normal'"
            )
        given = [name for name in ("subspaces", "p0", "p1") if getattr(self, name) is not None]
        if prior != "isa" and given:
            raise ValueError(f"{given[0]} is for prior 'isa' alone, got {getattr(self, given[0])!r} with {prior!r}")
        if prior == "normal":
            if self.scale is not None or self.learn_exponents:
                name = "learn_exponents" if self.scale is None else "scale"
                raise ValueError(f"{name} is for ISA priors, got {getattr(self, name)!r} with prior 'normal'")
            latent_dim = defaults.latent_dim if self.latent_dim is None else _count("latent_dim", self.latent_dim, 1)
            self._set(prior=prior, latent_dim=latent_dim)
            return

        if prior == "isa":
            subspaces = defaults.subspaces if self.subspaces is None else self.subspaces
            if isinstance(subspaces, str) or not isinstance(subspaces, Sequence) or not subspaces:
                raise TypeError(f"subspaces must be a sequence of sizes, got {subspaces!r}")
            subspaces = tuple(_count("subspaces", size, 1) for size in subspaces)
            if sum(subspaces) > _MOST_LATENTS:
                raise ValueError(f"subspaces must add up to at most {_MOST_LATENTS:,} latents, got {sum(subspaces)}")
            p0 = _positive("p0", _P0 if self.p0 is None else self.p0)
            p1 = self.p1 if self.p1 is not None else 2.0 if self.learn_exponents else defaults.p1
            if isinstance(p1, Sequence) and not isinstance(p1, str):
                p1 = tuple(_positive("p1", value) for value in p1)
                if len(p1) != len(subspaces):
                    raise ValueError(f"p1 must be one number or {len(subspaces)}, one a subspace, got {len(p1)}")
            else:
                p1 = _positive("p1", p1)
            self._set(subspaces=subspaces, p0=p0, p1=p1)
        else:
            try:
                tree = Node.parse(prior)
            except ValueError as error:
                raise ValueError(f"prior must be 'normal', 'isa' or the text of a tree: {error}") from None
            if tree.n_leaves > _MOST_LATENTS:
                raise ValueError(f"prior must be a tree of at most {_MOST_LATENTS:,} leaves, got {tree.n_leaves}")
            for exponent in tree.exponents:
                _positive("an exponent of prior", exponent)
        self._set(prior=prior)

        scale = 1.0 if self.scale is None else self.scale
        if scale != "unit":
            scale = _positive("scale", scale)
        elif self.learn_exponents:
            raise ValueError("scale must be a number where exponents are learned, got 'unit'")
        self._set(scale=scale)
        LpNested(self.tree, scale)  # checks what is left: whether one scale makes every variance 1
        leaves = self.tree.n_leaves
        latent_dim = leaves if self.latent_dim is None else _count("latent_dim", self.latent_dim, 1)
        if latent_dim != leaves:
            raise ValueError(f"latent_dim must be {leaves}, the number of leaves of {self.tree}, got {latent_dim}")
        self._set(latent_dim=latent_dim)

    @property
    def base(self) -> str:
        """What is minimised, whatever the prior: ``"beta-vae"``, ``"beta-tcvae"`` or ``"factor-vae"``."""
        return OBJECTIVES[self.objective]

    @property
    def tree(self) -> Node | None:
        """The prior's tree, with the exponents from which learned ones start; None for the normal prior."""
        if self.prior == "normal":
            return None
        if self.prior != "isa":
            return Node.parse(self.prior)
        p1 = self.p1 if isinstance(self.p1, tuple) else (self.p1,) * len(self.subspaces)
        return Node(self.p0, [Node(p, size) for p, size in zip(p1, self.subspaces, strict=True)])

    @property
    def total_steps(self) -> int:
        """Number of steps."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * (DEFAULTS[self.dataset].images // self.batch_size)))

    @property
    def reduced(self) -> bool:
        """Whether fewer images are seen than at the paper's scale; such a result is to be labelled."""
        defaults = DEFAULTS[self.dataset]
        full = defaults.epochs * (defaults.images // 2048) * 2048
        return self.total_steps * self.batch_size < 0.99 * full

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that stand for everything that determines the result.

        Two ways of writing one run, such as an ISA prior and its tree as text, have one hash.
        """
        return _digest(self._determines())

    @property
    def course(self) -> str:
        """The same for everything but the number of steps: a longer run of one course goes on where a shorter ends."""
        determines = self._determines()
        del determines["steps"]
        return _digest(determines)

    def _determines(self) -> dict[str, Any]:
        tree = self.tree
        determines = {
            **{name: getattr(self, name) for name in ("dataset", "beta", "seed", "model", "latent_dim", "batch_size")},
            **{name: getattr(self, name) for name in ("learning_rate", "likelihood", "precision")},
            "objective": self.base,
            "source": "drawn" if self.source is None else "published",
            "steps": self.total_steps,
            "prior": "normal" if tree is None else str(tree),
            "format": _FORMAT,
        }
        if tree is not None:
            determines["scale"] = self.scale
            determines["learned"] = self.exponent_learning_rate if self.learn_exponents else None
        determines["estimate"] = self.sampling if self.base == "beta-tcvae" else self.kl
        return determines

    @property
    def key(self) -> str:
        """Name for files and lists: data set, objective, beta, seed and hash."""
        return f"{self.dataset}-{self.objective}-{self.beta:g}-seed{self.seed}-{self.hash}"

    @property
    def pack_key(self) -> tuple:
        """Equal for runs that can be trained as one pack: all but seed, beta, exponents and scale."""
        tree = self.tree
        shape = None if tree is None else (tree.structure, self.learn_exponents, self.exponent_learning_rate)
        names = ("dataset", "source", "base", "model", "latent_dim", "total_steps", "batch_size", "learning_rate")
        names += ("likelihood", "kl", "sampling", "precision")
        return (*(getattr(self, name) for name in names), shape)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON holds them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """Make a run of what ``to_dict`` or a specification gives.

        Raises
        ------
        KeyError
            If a name is no field's.
        TypeError, ValueError
            As the constructor.
        """
        names = [one.name for one in fields(cls)]
        for name in values:
            if name not in names:
                raise KeyError(f"{name!r} is no field of a run: its fields are {', '.join(names)}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# Networks, as functions of their parameters


class _Normalisation(nn.BatchNorm2d):
    """Batch normalisation in float32, whatever the precision around it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class _Sampler(nn.Module):
    """A VAE whose products are in one precision and whose normalisation, posterior and sample are in float32.

    It holds no values: it is called with parameters that have been cast, those of linear and convolutional layers to
    ``dtype``, and named as those of a module that has the VAE as ``vae``.
    """

    def __init__(self, vae: models.VAE, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae = copy.deepcopy(vae).to("meta")
        self.dtype = dtype
        for parent in list(self.vae.modules()):
            for name, layer in parent.named_children():
                if isinstance(layer, nn.BatchNorm2d):
                    setattr(parent, name, _Normalisation(layer.num_features, layer.eps, layer.momentum, device="meta"))

    def forward(self, x: Tensor, noise: Tensor, other: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Return logits, sample, mean and log-variance; of a second batch and its noise, one more sample."""
        mean, log_var, z = self._sample(x, noise)
        logits = self.vae.decode(z.to(self.dtype))
        if other is None:
            return logits, z, mean, log_var
        with torch.no_grad():
            *_, second = self._sample(*other)
        return logits, z, mean, log_var, second

    def _sample(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = (part.float() for part in self.vae.encode(x.to(self.dtype)))
        return mean, log_var, models.Posterior(mean, log_var).sample(noise)


def _products(module: nn.Module) -> set[str]:
    """Names of the parameters that enter matrix products and convolutions."""
    layers = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, layer in module.named_modules()
        if isinstance(layer, layers)
        for name, _ in layer.named_parameters(recurse=False)
    }


class _Function:
    """A network as a function of stacked parameters, for P models at once, or for one without the stacking."""

    def __init__(self, module: nn.Module, size: int) -> None:
        self.module = module
        self.size = size

    def __call__(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], *inputs: Any) -> Any:
        if self.size > 1:
            return vmap(self._one)(parameters, buffers, *inputs)
        # One model alone takes the kernels that it would take without stacking, which fuse more.
        return _with_one(self._one(_of_one(parameters), _of_one(buffers), *map(_of_one, inputs)))

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], *inputs: Any) -> Any:
        return functional_call(self.module, (parameters, buffers), inputs)


def _of_one(stacked: Any) -> Any:
    """Take the leading dimension of 1 off a tensor, or off all in a tuple or dictionary."""
    if isinstance(stacked, dict):
        return {name: value.squeeze(0) for name, value in stacked.items()}
    return tuple(value.squeeze(0) for value in stacked) if isinstance(stacked, tuple) else stacked.squeeze(0)


def _with_one(single: Any) -> Any:
    """Put it back."""
    return tuple(value.unsqueeze(0) for value in single) if isinstance(single, tuple) else single.unsqueeze(0)


# ---------------------------------------------------------------------------------------------------------------------
# Priors, stacked


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))


def _standard_normal(latent_dim: int, device: torch.device) -> Distribution:
    # Unvalidated: a run that diverges is found by its loss, and must not raise in the midst of a pack.
    zeros = torch.zeros(latent_dim, device=device)
    return Independent(Normal(zeros, torch.ones_like(zeros), validate_args=False), 1, validate_args=False)


class _StackedPrior:
    """The priors of P runs, their trees of one structure, as one distribution of batch shape ``(P, 1)``.

    Learned exponents are the softplus of a free parameter, all but the root's.
    """

    def __init__(self, runs: Sequence[Run], device: torch.device) -> None:
        self.tree = runs[0].tree
        self.raw: Tensor | None = None
        self._fixed: Distribution | None = None
        if self.tree is None:
            self._fixed = _standard_normal(runs[0].latent_dim, device)
            return
        exponents = torch.tensor([run.tree.exponents for run in runs], dtype=torch.float64)
        scales = torch.stack([LpNested(run.tree, run.scale).scale.double() for run in runs])
        self.scale = scales[:, None].to(device)
        if runs[0].learn_exponents:
            self.root = exponents[:, :1].float().to(device)
            self.raw = _inverse_softplus(exponents[:, 1:]).float().to(device)
            self.scale = self.scale.float()
        else:
            self._fixed = self._distribution(exponents.to(device))
            self._fixed.log_prob(torch.zeros(len(runs), 1, self.tree.n_leaves, device=device))  # keeps its constants

    def _distribution(self, exponents: Tensor) -> LpNested:
        columns = [column[:, None] for column in exponents.unbind(1)]
        return LpNested(self.tree.with_exponents(columns), self.scale, validate_args=False)

    def exponents(self, raw: Tensor) -> Tensor:
        """Return the learned exponents ``(P, nodes - 1)``."""
        return F.softplus(raw)

    def __call__(self, raw: Tensor | None) -> Distribution:
        if raw is None:
            return self._fixed
        return self._distribution(torch.cat([self.root, self.exponents(raw)], 1))


def _final_prior(run: Run, learned: Sequence[float] | None) -> Distribution:
    """Return the prior of one run on the CPU, with its learned exponents where it has some."""
    if run.tree is None:
        return objectives.standard_normal(run.latent_dim)
    exponents = list(run.tree.exponents)
    if learned is not None:
        exponents[1:] = [float(p) for p in learned]
    return LpNested(run.tree.with_exponents(exponents), run.scale)


# ---------------------------------------------------------------------------------------------------------------------
# Batches and noise

_NOISE, _PERMUTATION, _EVALUATION, _MIG = range(4)
_CHUNK = 16
"""Steps whose noise is drawn at once."""


def _generator(device: torch.device, *numbers: int) -> torch.Generator:
    """Return a generator whose state is a function of the numbers."""
    state = np.random.SeedSequence(list(numbers)).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(state[0]) << 31 ^ int(state[1]))


class _Feed:
    """Which images and what noise each step of one run takes: functions of its seed and of the step alone."""

    def __init__(self, run: Run, dataset: FactorDataset, device: torch.device) -> None:
        self.run = run
        self.dataset = dataset
        self.device = device
        self.pairs = run.base == "factor-vae"
        self.per_epoch = len(dataset) // run.batch_size
        self._epoch: tuple[int, Tensor] | None = None
        self._chunk: tuple[int, Tensor, Tensor | None] | None = None

    def index(self, step: int) -> Tensor:
        """Flat indices of the step's images, ``(B,)``; with those of FactorVAE's second batch ``(2 B,)``.

        The second batch is the one half an epoch away, so that the two share no image.
        """
        number, batch = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = number, self.dataset.epoch(number, seed=self.run.seed)
        batches = [batch, (batch + (self.per_epoch + 1) // 2) % self.per_epoch] if self.pairs else [batch]
        size = self.run.batch_size
        parts = [self._epoch[1][number * size : (number + 1) * size] for number in batches]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def noise(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Standard normal noise ``(draws, B, D)`` and, for FactorVAE, each latent's permutation ``(B, D)``."""
        number, place = divmod(step, _CHUNK)
        if self._chunk is None or self._chunk[0] != number:
            self._chunk = number, self._draw(torch.randn, _NOISE, number, 2 if self.pairs else 1), None
            if self.pairs:
                self._chunk = *self._chunk[:2], self._draw(torch.rand, _PERMUTATION, number, 1)
        noise, uniform = self._chunk[1][place], self._chunk[2]
        return noise, None if uniform is None else uniform[place, 0].argsort(0)

    def _draw(self, function: Callable[..., Tensor], stream: int, number: int, draws: int) -> Tensor:
        generator = _generator(self.device, self.run.seed, stream, number)
        shape = (_CHUNK, draws, self.run.batch_size, self.run.latent_dim)
        return function(shape, generator=generator, device=self.device)


# ---------------------------------------------------------------------------------------------------------------------
# The optimiser


class _Adam:
    """Adam on float32 parameters, some of which have copies in another precision that it keeps up to date.

    Compiled, each group is one pass over memory that reads gradients in the precision they come in and writes the
    copies too. Otherwise it is PyTorch's fused kernel with the casts around it.
    """

    def __init__(self, groups: list[dict[str, Any]], copies: Mapping[Tensor, Tensor], compile: bool) -> None:
        device = groups[0]["params"][0].device
        self.optimiser = torch.optim.Adam(groups, fused=True, capturable=device.type == "cuda")
        self.copies = copies
        for group in groups:
            for value in group["params"]:
                self.optimiser.state[value] = {
                    "step": torch.zeros((), device=device),
                    "exp_avg": torch.zeros_like(value, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(value, requires_grad=False),
                }
        self.taken = torch.zeros((), dtype=torch.float64, device=device)
        self._update = torch.compile(_adam_update, dynamic=False) if compile else None

    def moments(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """First and second moments of a parameter's gradient."""
        state = self.optimiser.state[value]
        return state["exp_avg"], state["exp_avg_sq"]

    @torch.no_grad()
    def restore(self, steps: int) -> None:
        """Take the parameters and moments, which have been set, for those after so many steps."""
        self.taken.fill_(steps)
        for state in self.optimiser.state.values():
            state["step"].fill_(steps)
        self._copy()

    def _copy(self) -> None:
        for value, copy_ in self.copies.items():
            copy_.copy_(value)

    def uncompile(self) -> None:
        """Use PyTorch's kernel from now on; before the first step."""
        self._update = None

    @torch.no_grad()
    def step(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Take one step along the gradients, given by parameter."""
        if self._update is None:
            for value, gradient in gradients.items():
                value.grad = gradient.to(value.dtype).contiguous()  # the kernel goes by memory, whatever the strides
            self.optimiser.step()
            self._copy()
            return
        self.taken += 1
        for group in self.optimiser.param_groups:
            values = group["params"]
            first, second = zip(*map(self.moments, values), strict=True)
            copies = [self.copies[value].detach() if value in self.copies else None for value in values]
            given = [gradients[value] for value in values]
            arguments = [value.detach() for value in values], copies, list(first), list(second), given
            # Outside of what is compiled, which would compute them once an element.
            decay, square_decay = group["betas"]
            step_size = (group["lr"] / (1 - decay**self.taken)).float()
            root_correction = (1 - square_decay**self.taken).sqrt().float()
            self._update(*arguments, step_size, root_correction, decay, square_decay, group["eps"])


def _adam_update(
    values: list[Tensor],
    copies: list[Tensor | None],
    first: list[Tensor],
    second: list[Tensor],
    gradients: list[Tensor],
    step_size: Tensor,
    root_correction: Tensor,
    decay: float,
    square_decay: float,
    epsilon: float,
) -> None:
    """Adam's update of Kingma and Ba (2015), in place; ``step_size`` and ``root_correction`` hold the step's number."""
    for value, copy_, mean, square, gradient in zip(values, copies, first, second, gradients, strict=True):
        gradient = gradient.float()
        mean.lerp_(gradient, 1 - decay)
        square.mul_(square_decay).addcmul_(gradient, gradient, value=1 - square_decay)
        value.sub_(step_size * mean / (square.sqrt() / root_correction + epsilon))
        if copy_ is not None:
            copy_.copy_(value)


# ---------------------------------------------------------------------------------------------------------------------
# A pack in training


class _Inputs(NamedTuple):
    """What one step takes, for all runs of a pack."""

    x: Tensor  # (P, B, C, H, W)
    noise: Tensor  # (P, B, D)
    other_x: Tensor | None
    other_noise: Tensor | None
    order: Tensor | None  # (P, B, D)


_COMPILE_FROM = 300
"""Steps of a run from which compiling its step pays."""

_WARM_STEPS = 3
"""Steps run as they are before a step is captured as a CUDA graph."""

_CHECK_EVERY = 25
"""Steps between two looks at the losses, each of which makes the host wait for the device."""

_DIVERGED, _MOST_LOSS = 100.0, 1e15
"""A loss is out of bounds beyond so many times the run's first one, or that of a model that knows nothing (log 2 a
pixel), whichever is greater, and in any case beyond the other number: the squares of gradients that Adam keeps are then
about to leave float32."""

_PATIENCE = 25
"""A run has diverged when its loss is out of bounds for so many steps in a row. One batch alone may be: with beta = 100
and an exponent of 10, a single sample far out weighs more than all images."""


class _Pack:
    """Stacked state of the runs of one shape, and the step that advances it."""

    def __init__(self, runs: Sequence[Run], dataset: FactorDataset, device: torch.device, compile: bool) -> None:
        first = runs[0]
        self.runs = tuple(runs)
        self.device = device
        self.dataset = dataset
        self.run = first
        self.dtype = torch.bfloat16 if first.precision == "bf16" else torch.float32
        # A bit is a bit in any precision; a grey level is not.
        self.image_dtype = self.dtype if dataset.packed else torch.float32
        self.step = 0
        self.seconds = 0.0
        self.compiled = compile
        self.feeds = [_Feed(run, dataset, device) for run in runs]

        channels = dataset.image_shape[0]
        built = [models.build(first.model, first.latent_dim, channels, seed=run.seed) for run in runs]
        sampler = _Sampler(built[0], self.dtype)
        self.parameters, self.buffers = _stacked([nn.ModuleDict({"vae": vae}) for vae in built], device)
        self.vae = _Function(sampler, len(runs))
        products = _products(sampler)
        self.critic: _Function | None = None
        self.critic_parameters: dict[str, Tensor] = {}
        if first.base == "factor-vae":
            critics = [models.build_discriminator(first.latent_dim, seed=run.seed) for run in runs]
            self.critic_parameters, _ = _stacked(critics, device)
            self.critic = _Function(critics[0].to("meta"), len(runs))
        self.prior = _StackedPrior(runs, device)
        # What is differentiated: copies of the parameters in the precision of the products, or themselves.
        copied = [value for name, value in self.parameters.items() if name in products]
        copied += self.critic_parameters.values()
        low = self.dtype != torch.float32
        self.copies = {value: value.to(self.dtype) for value in copied} if low else {}
        self.beta = torch.tensor([run.beta for run in runs], device=device)
        if compile:
            torch.compiler.reset()  # what is kept of earlier packs counts against a limit of kept code
        self.adam = self._optimizer(compile)
        for value in self.tensors().values():
            self._differentiated(value).requires_grad_()
        self.names = self._term_names()
        self.curve = torch.zeros(first.total_steps, len(self.names), len(runs), device=device)
        self._loss = torch.compile(self._losses, dynamic=False) if compile else self._losses
        self._graphs = device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream(device) if self._graphs else None
        self._warmed = 0
        self._static: _Inputs | None = None
        self._terms: Tensor | None = None

    # ---- state

    def tensors(self) -> dict[str, Tensor]:
        """All that is trained, by name, each of shape ``(P, ...)``."""
        named = dict(self.parameters)
        named |= {f"discriminator.{name}": value for name, value in self.critic_parameters.items()}
        if self.prior.raw is not None:
            named["exponents"] = self.prior.raw
        return named

    def _differentiated(self, value: Tensor) -> Tensor:
        """Return what stands for a parameter in the networks."""
        return self.copies.get(value, value)

    def _optimizer(self, compile: bool) -> _Adam:
        run = self.run
        groups: list[dict[str, Any]] = [{"params": list(self.parameters.values()), "lr": run.learning_rate}]
        if self.critic_parameters:
            rates = {"lr": _DISCRIMINATOR_RATE, "betas": _DISCRIMINATOR_BETAS}
            groups.append({"params": list(self.critic_parameters.values()), **rates})
        if self.prior.raw is not None:
            groups.append({"params": [self.prior.raw], "lr": run.exponent_learning_rate})
        return _Adam(groups, self.copies, compile)

    def state(self, number: int) -> dict[str, Tensor]:
        """State of one run as a checkpoint holds it."""
        held = {f"buffer.{name}": value[number] for name, value in self.buffers.items()}
        for name, tensor in self.tensors().items():
            first, second = self.adam.moments(tensor)
            held[f"parameter.{name}"] = tensor[number]
            held[f"exp_avg.{name}"] = first[number]
            held[f"exp_avg_sq.{name}"] = second[number]
        held["curve"] = self.curve[: self.step, :, number]
        return {name: value.detach().cpu().contiguous().clone() for name, value in held.items()}

    def restore(self, number: int, path: Path, step: int) -> None:
        """Put the state of one run back, from a checkpoint after so many steps."""
        with torch.no_grad():
            places = {f"buffer.{name}": value[number] for name, value in self.buffers.items()}
            for name, tensor in self.tensors().items():
                first, second = self.adam.moments(tensor)
                places[f"parameter.{name}"] = tensor[number]
                places[f"exp_avg.{name}"] = first[number]
                places[f"exp_avg_sq.{name}"] = second[number]
            places["curve"] = self.curve[:step, :, number]
            for name, value in _read_tensors(path, places).items():
                places[name].copy_(value)
        self.step = step
        self.adam.restore(step)

    def is_finite(self, number: int) -> bool:
        """Whether parameters, moments and statistics of one run are finite, and its exponents also positive."""
        values = [value[number] for value in self.buffers.values()]
        for tensor in self.tensors().values():
            values += [one[number] for one in (tensor, *self.adam.moments(tensor))]
        if self.prior.raw is not None:
            values.append(self.prior.exponents(self.prior.raw)[number].log())
        return all(bool(value.isfinite().all()) for value in values)

    def networks(self, number: int) -> tuple[models.VAE, models.Discriminator | None]:
        """Return one run's networks as modules on the CPU, for evaluation."""
        run = self.runs[number]
        vae = models.build(run.model, run.latent_dim, self.dataset.image_shape[0])
        own = {**self.parameters, **self.buffers}
        vae.load_state_dict({name.removeprefix("vae."): value[number] for name, value in own.items()})
        vae.eval()
        if self.critic is None:
            return vae, None
        critic = models.build_discriminator(run.latent_dim)
        critic.load_state_dict({name: value[number] for name, value in self.critic_parameters.items()})
        return vae, critic

    # ---- one step

    def _term_names(self) -> tuple[str, ...]:
        terms = {
            "beta-vae": objectives.BetaVAETerms,
            "beta-tcvae": objectives.BetaTCVAETerms,
            "factor-vae": objectives.FactorVAETerms,
        }
        names = terms[self.run.base]._fields
        if self.critic is not None:
            names += ("discriminator_loss",)
        if self.prior.raw is not None:
            names += tuple(f"exponent_{number}" for number in range(1, self.prior.raw.shape[1] + 1))
        return names

    def _losses(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        critic_parameters: dict[str, Tensor],
        raw: Tensor | None,
        beta: Tensor,
        inputs: _Inputs,
    ) -> tuple[Tensor, Tensor]:
        """Return what is differentiated, the sum over runs, and all terms ``(terms, P)``."""
        run = self.run
        other = () if inputs.other_x is None else ((inputs.other_x, inputs.other_noise),)
        logits, z, mean, log_var, *second = self.vae(parameters, buffers, inputs.x, inputs.noise, *other)
        fit = objectives.LIKELIHOODS[run.likelihood](logits, inputs.x)
        arguments = (fit, z, mean, log_var, self.prior(raw), beta)
        if run.base == "beta-vae":
            terms = objectives.beta_vae(*arguments, kl=run.kl)
        elif run.base == "beta-tcvae":
            sizes = {"dataset_size": len(self.dataset), "sampling": run.sampling}
            terms = objectives.beta_tcvae(*arguments, **sizes)
        else:
            held = {name: value.detach() for name, value in critic_parameters.items()}
            judged = self.critic(held, {}, z.to(self.dtype))
            terms = objectives.factor_vae(*arguments, discriminator_logits=judged, kl=run.kl)
        total = terms.loss.sum()
        values = list(terms)
        if self.critic is not None:
            permuted = second[0].gather(-2, inputs.order)
            answers = [self.critic(critic_parameters, {}, codes.detach().to(self.dtype)) for codes in (z, permuted)]
            loss = objectives.discriminator_loss(*answers)
            total = total + loss.sum()
            values.append(loss)
        if raw is not None:
            values += self.prior.exponents(raw).unbind(1)
        return total, torch.stack(values).detach()

    def _inputs(self) -> _Inputs:
        """Return the present step's images and noise."""
        size, shape = len(self.runs), self.dataset.image_shape
        index = torch.cat([feed.index(self.step) for feed in self.feeds])
        x = self.dataset.images(index, dtype=self.image_dtype, check=False).view(size, -1, *shape)
        drawn = [feed.noise(self.step) for feed in self.feeds]
        noise = torch.stack([noise for noise, _ in drawn], 1)  # (draws, P, B, D)
        if self.critic is None:
            return _Inputs(x, noise[0], None, None, None)
        x, other_x = x.split(self.run.batch_size, 1)
        return _Inputs(x, noise[0], other_x, noise[1], torch.stack([order for _, order in drawn]))

    def _update(self, inputs: _Inputs) -> Tensor:
        """Take one step of all runs; returns the terms before it."""
        try:
            return self._differentiate_and_step(inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Only what compiles at its first call may fall back: later on, or uncompiled, an error is an error.
            if not self.compiled or self._terms is not None:
                raise
            _logger.warning("the step runs uncompiled: %s", _first_line(error))
            self.compiled, self._loss = False, self._losses
            self.adam.uncompile()
            return self._differentiate_and_step(inputs)

    def _differentiate_and_step(self, inputs: _Inputs) -> Tensor:
        vae, critic = (
            {name: self._differentiated(value) for name, value in parameters.items()}
            for parameters in (self.parameters, self.critic_parameters)
        )
        total, terms = self._loss(vae, self.buffers, critic, self.prior.raw, self.beta, inputs)
        values = list(self.tensors().values())
        gradients = torch.autograd.grad(total, [self._differentiated(value) for value in values])
        self.adam.step(dict(zip(values, gradients, strict=True)))
        return terms

    def advance(self) -> None:
        """Take the next step."""
        inputs = self._inputs()
        if not self._graphs:
            self._terms = self._update(inputs)
        elif self._graph is not None:
            for static, given in zip(self._static, inputs, strict=True):
                if static is not None:
                    static.copy_(given)
            self._graph.replay()
        else:
            self._advance_towards_graph(inputs)
        self.curve[self.step] = self._terms
        self.step += 1

    def _advance_towards_graph(self, inputs: _Inputs) -> None:
        """Take the first steps on a stream of their own, as a capture asks, then capture one there and replay it."""
        if self._warmed < _WARM_STEPS:
            self._warmed += 1
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                self._terms = self._update(inputs)
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
            return
        self._static = _Inputs(*(None if given is None else given.clone() for given in inputs))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                terms = self._update(self._static)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _logger.warning("the step runs without a CUDA graph: %s", str(error).strip().splitlines()[0])
            self._graphs, self._static = False, None
            torch.cuda.synchronize(self.device)
            self._terms = self._update(inputs)
            return
        self._graph, self._terms = graph, terms
        graph.replay()


def _stacked(modules: Sequence[nn.Module], device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return parameters and buffers of modules of one shape, stacked to ``(P, ...)``."""

    def stack(of: Callable[[nn.Module], Iterable[tuple[str, Tensor]]]) -> dict[str, Tensor]:
        named = [dict(of(module)) for module in modules]
        return {name: torch.stack([one[name].detach() for one in named]).to(device) for name in named[0]}

    return stack(nn.Module.named_parameters), stack(nn.Module.named_buffers)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or is not of the run that it is named after."""


def _save_tensors(path: Path, tensors: dict[str, Tensor], **metadata: object) -> None:
    text = {name: json.dumps(value) for name, value in metadata.items()}

    def write(temporary: str) -> None:
        try:
            save_file(tensors, temporary, metadata=text)
        except safetensors.SafetensorError as error:  # no OSError, although a full disk is what it may tell of
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None

    write_atomically(path, write)


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        with safetensors.safe_open(path, "pt") as file:
            return {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _read_tensors(path: Path, places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the tensors of a file that has those of ``places``, of their shapes and types; others are left out."""
    found = {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            missing = sorted(set(places) - set(file.keys()))
            if missing:
                raise CheckpointError(f"{path} lacks the tensor {missing[0]}")
            for name, place in places.items():
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(place.shape):  # before anything of it is read
                    raise CheckpointError(f"{name} in {path} must have shape {tuple(place.shape)}, it has {shape}")
                found[name] = file.get_tensor(name)
                if found[name].dtype != place.dtype:
                    raise CheckpointError(f"{name} in {path} must be {place.dtype}, it is {found[name].dtype}")
    except (OSError, KeyError, AttributeError, TypeError, safetensors.SafetensorError) as error:
        # types that a tensor cannot have are met with errors of several kinds
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return found


def _checkpoint(folder: Path, run: Run) -> Path:
    return folder / f"{run.dataset}-{run.base}-{run.beta:g}-seed{run.seed}-{run.course}.checkpoint.safetensors"


def _checkpoint_step(folder: Path | None, run: Run) -> int:
    """Return the step of a run's checkpoint, 0 where it has none."""
    if folder is None or not _checkpoint(folder, run).exists():
        return 0
    path = _checkpoint(folder, run)
    held = _read_metadata(path)
    if held.get("course") != run.course:
        raise CheckpointError(
            f"{path} is of the course {held.get('course')}, not of {run.course}: move it away to start anew"
        )
    step, seconds = held.get("step"), held.get("seconds")
    if type(step) is not int or not 0 <= step <= _MOST_STEPS:
        raise CheckpointError(f"{path} must say its step, a whole number from 0 on, got {str(step)[:60]!r}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 2**63:
        raise CheckpointError(f"{path} must say its seconds, a number from 0 on, got {str(seconds)[:60]!r}")
    return step


def remove_checkpoint(run: Run, folder: str | os.PathLike[str]) -> None:
    """Remove a run's checkpoint from a folder, once its result is saved; without one, do nothing.

    A longer run of the same course could have gone on from it.
    """
    _checkpoint(Path(folder), run).unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


class DivergedError(ValueError):
    """A model cannot be measured, since over all images its posteriors or reconstructions are not finite numbers."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured of a trained model, over all images of its data set."""

    log_likelihood: Tensor
    """(N,) log p(x|z) of every image, z one sample of its posterior; nats."""
    kl: Tensor
    """(N,) log q(z|x) - log p(z) at the same sample (Eq. 12); nats."""
    mean: Tensor
    """(N, D) posterior means."""
    log_var: Tensor
    """(N, D) posterior log-variances."""
    active: Tensor
    """(D,) which latents are active: the variance of their mean over images exceeds 0.01."""
    mig: MutualInformationGap


_EVALUATION_BATCH = 2048


def evaluate(
    model: models.VAE,
    prior: Distribution,
    run: Run,
    dataset: FactorDataset,
    *,
    device: torch.device | str = "cpu",
    n_samples: int | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Measure a trained model in one pass over all images of its data set.

    One sample is drawn from each posterior, its noise a function of the run's seed.

    Parameters
    ----------
    model
        The networks; left in evaluation mode on the device.
    prior
        Distribution of event shape ``(D,)``, for the divergence.
    run
        Its likelihood, precision and seed are used, and its data set's choice of factors for the MIG.
    dataset
        The images.
    device
        Where to compute.
    n_samples
        Samples for the MIG's entropies; all images by default. See :func:`isa.mig.mutual_information_gap`.
    progress
        Show a progress bar; by default where stderr is a terminal.

    Returns
    -------
    Evaluation
        Tensors on the CPU.

    Raises
    ------
    DivergedError
        If posteriors, reconstructions or what is measured of them are not finite numbers, or log-variances beyond ±500
        (also a ``ValueError``).
    """
    device = torch.device(device)
    dataset = dataset.to(device)
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    model = model.eval().to(device)
    sampler = _Sampler(model, dtype).eval()
    products = _products(sampler)
    held = {f"vae.{name}": value for name, value in model.state_dict().items()}
    state = {name: value.to(dtype) if name in products else value for name, value in held.items()}
    log_likelihood = objectives.LIKELIHOODS[run.likelihood]
    ill = f"{run.key} cannot be measured: its posteriors or reconstructions are out of bounds"
    generator = _generator(device, run.seed, _EVALUATION)
    # Made beforehand: small results kept between large ones that are freed would leave the memory in pieces.
    fit, kl = torch.empty(2, len(dataset), device=device)
    mean, log_var = torch.empty(2, len(dataset), run.latent_dim, device=device)
    with torch.no_grad(), _bar(len(dataset), "images", f"evaluating {run.key}", progress) as bar:
        for index in torch.arange(len(dataset)).split(_EVALUATION_BATCH):
            x = dataset.images(index, dtype=dtype if dataset.packed else torch.float32)
            noise = torch.randn(len(index), run.latent_dim, generator=generator, device=device)
            logits, z, *posterior = functional_call(sampler, state, (x, noise))
            if not _finite(z):  # which a prior may refuse in words of its own
                raise DivergedError(ill)
            here = slice(int(index[0]), int(index[-1]) + 1)
            fit[here] = log_likelihood(logits, x)
            kl[here] = objectives.gaussian_log_density(z, *posterior) - _log_prior(prior, z)
            mean[here], log_var[here] = posterior
            bar.update(len(index))
    if not _finite(fit, kl, mean, log_var) or bool(log_var.abs().max() > _LOG_VAR_LIMIT):
        raise DivergedError(ill)
    mig = mutual_information_gap(
        mean,
        log_var,
        dataset.factor_sizes,
        factors=DEFAULTS[run.dataset].scored,
        n_samples=n_samples,
        generator=_generator(device, run.seed, _MIG),
    )
    of_mig = (mig.score, mig.standard_error, mig.error_bound, mig.mutual_information, mig.conditional_entropy)
    if not _finite(*of_mig):
        raise DivergedError(ill)
    active = active_units(mean)
    return Evaluation(fit.cpu(), kl.cpu(), mean.cpu(), log_var.cpu(), active.cpu(), mig)


def _finite(*values: Tensor | float) -> bool:
    return all(bool(torch.isfinite(torch.as_tensor(one)).all()) for one in values)


def _log_prior(prior: Distribution, z: Tensor) -> Tensor:
    # A prior of plain numbers follows its argument's device; one of tensors is where it was made.
    return prior.log_prob(z) if isinstance(prior, LpNested) else prior.log_prob(z.cpu()).to(z.device)


# ---------------------------------------------------------------------------------------------------------------------
# Results


@dataclass(frozen=True)
class Result:
    """A run that has been trained, and what was measured of it."""

    run: Run
    model: models.VAE
    """The networks after the last step, on the CPU in evaluation mode."""
    discriminator: models.Discriminator | None
    prior: Distribution
    """The prior, with its learned exponents where it has some, on the CPU."""
    curve: dict[str, np.ndarray]
    """Every term of the objective at every step, and every learned exponent, each (steps,)."""
    diverged_at: int | None
    """Step, counted from 0, at which a term was not a finite number, or from which on the loss was out of bounds; the
    number of steps where only the parameters after the last one, or the measurement, showed it; None for a run that
    went well. The curve ends there."""
    record: dict[str, Any] = field(repr=False)
    """All that is reported of the run, as JSON holds it."""
    evaluation: Evaluation | None = field(repr=False, default=None)
    """None where the run diverged or evaluation was not asked for."""

    @property
    def exponents(self) -> tuple[float, ...] | None:
        """The prior's exponents, the root's first, in the order of :meth:`isa.Node.nodes`; None for the normal one."""
        return tuple(self.prior.tree.exponents) if isinstance(self.prior, LpNested) else None

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``model.safetensors``, ``curve.safetensors`` and ``record.json``, each whole or not at all.

        The record is written last: where it is, the others are.

        Returns
        -------
        Path
            The folder.
        """
        folder = Path(folder)
        tensors = {f"vae.{name}": value.contiguous() for name, value in self.model.state_dict().items()}
        if self.discriminator is not None:
            named = self.discriminator.state_dict()
            tensors |= {f"discriminator.{name}": value.contiguous() for name, value in named.items()}
        metadata = {"run": self.run.to_dict(), "hash": self.run.hash, "exponents": self.exponents}
        metadata["channels"] = self.model.channels
        _save_tensors(folder / "model.safetensors", tensors, **metadata)
        curve = {name: torch.from_numpy(values) for name, values in self.curve.items()}
        _save_tensors(folder / "curve.safetensors", curve, hash=self.run.hash)
        text = json.dumps(self.record, indent=2, allow_nan=False) + "\n"
        write_atomically(folder / "record.json", lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
        return folder


def load_model(path: str | os.PathLike[str]) -> tuple[Run, models.VAE, Distribution]:
    """Read back what :meth:`Result.save` wrote: the run, its networks in evaluation mode, and its prior.

    Parameters
    ----------
    path
        The folder, or the ``.safetensors`` file of the model in it.

    Raises
    ------
    CheckpointError
        If the file is not such a model (also a ``ValueError``). Nothing in it is taken on trust.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    held = _read_metadata(path)
    if not isinstance(held.get("run"), dict):
        raise CheckpointError(f"{path} is no model of this package: it names no run")
    channels, exponents = held.get("channels"), held.get("exponents")
    if type(channels) is not int or not 1 <= channels <= 4:
        raise CheckpointError(f"{path} must be a model of images of 1 to 4 channels, got {str(channels)[:60]!r}")
    if exponents is not None and not isinstance(exponents, list):
        raise CheckpointError(f"{path} must have a list of exponents, or none, got {str(exponents)[:60]!r}")
    try:
        run = Run.from_dict(held["run"])
        prior = _final_prior(run, None if exponents is None else exponents[1:])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} is no model of this package: {error}") from None
    vae = models.build(run.model, run.latent_dim, channels)
    tensors = _read_tensors(path, {f"vae.{name}": value for name, value in vae.state_dict().items()})
    vae.load_state_dict({name.removeprefix("vae."): value for name, value in tensors.items()})
    return run, vae.eval(), prior


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read back the ``record.json`` that :meth:`Result.save` wrote.

    Raises
    ------
    ValueError
        If the file holds no record. Only its hash is looked at: that the rest is there is for its reader to find.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= _MOST_RECORD_BYTES):
            raise ValueError(f"it must be a file of at most {_MOST_RECORD_BYTES:,} bytes")
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict) or not isinstance(held.get("hash"), str):
            raise ValueError("it names no run")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no record: {error}") from None
    return held


def _versions() -> dict[str, str]:
    from isa import __version__

    python = platform.python_version()
    return {"python": python, "torch": torch.__version__, "numpy": np.__version__, "isa": __version__}


def _commit() -> str | None:
    """Return the commit that the package is run from, marked where its code differs from it; None outside a checkout.

    The records that a sweep adds to its own table are no code.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)runs/*.csv")
        return commit + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"


def _measurements(evaluation: Evaluation, dataset: FactorDataset) -> dict[str, Any]:
    """Return what a record says of an evaluation."""
    mig = evaluation.mig
    fit, kl = evaluation.log_likelihood.double(), evaluation.kl.double()
    scored = [dataset.factor_names[number] for number in mig.factors]
    gaps = {f"mig_{name}": gap for name, gap in zip(scored, mig.gaps.tolist(), strict=True)}
    return {
        "mig": mig.score,
        **gaps,
        "mig_standard_error": mig.standard_error,
        "mig_error_bound": mig.error_bound,
        "log_likelihood": fit.mean().item(),
        "log_likelihood_first_10000": fit[:10_000].mean().item(),
        "divergence": kl.mean().item(),
        "elbo": (fit - kl).mean().item(),
        "active_units": int(evaluation.active.sum()),
        "factors": scored,
        "mutual_information": mig.mutual_information.tolist(),
        "entropy": mig.entropy.tolist(),
        "conditional_entropy": mig.conditional_entropy.tolist(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train(run: Run, **options: Any) -> Result:
    """Train one run and measure it.

    Parameters
    ----------
    run
        What to train.
    **options
        As :func:`train_pack` takes them.

    Returns
    -------
    Result
        A run that diverged has a result too, with the step at which it did and no evaluation.

    Raises
    ------
    TypeError, ValueError, CheckpointError
        As :func:`train_pack`.
    """
    (result,) = train_pack([run], **options)
    return result


def train_pack(
    runs: Sequence[Run],
    *,
    dataset: FactorDataset | None = None,
    device: torch.device | str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    compile: bool | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    checkpoint_seconds: float = 0.0,
    evaluation: bool = True,
    n_samples: int | None = None,
    progress: bool | None = None,
    callback: Callable[[int, dict[str, np.ndarray]], object] | None = None,
) -> list[Result]:
    """Train runs of one shape together, each as if alone up to rounding, and measure each.

    Parameters
    ----------
    runs
        Different runs of one ``pack_key``: they may differ in seed, beta, and the prior's exponents and scale.
    dataset
        The images; by default they are loaded. One of another size than the published one is taken as it is.
    device
        Where to train; by default a GPU where there is one, then the CPU.
    cache_dir
        Where drawn images are kept; see :func:`isa.data.load`.
    compile
        Whether the step is compiled, with a fallback where no compiler is present; by default for runs of at least
        300 steps. It changes results by rounding.
    checkpoints
        Folder for checkpoints. A run that has one there goes on from it, to the result that it would have had, and so
        does a longer run of the same course. One that lies beyond a run's end is left as it is.
    checkpoint_every
        Steps between two checkpoints.
    checkpoint_seconds
        Seconds that must lie between two as well: a pack that takes many steps a second would otherwise wait for the
        disk, to which a checkpoint of the perceptrons of A.4 takes 171 MB a run.
    evaluation
        Whether the trained models are measured.
    n_samples
        As :func:`evaluate` takes it.
    progress
        Show a progress bar with the terms; by default where stderr is a terminal.
    callback
        Called now and then, and after the last step, with the number of steps taken and the latest terms, each ``(P,)``
        in the order of ``runs``.

    Returns
    -------
    list of Result
        In the order of ``runs``.

    Raises
    ------
    TypeError, ValueError
        If the runs cannot be trained together, or an option is out of range.
    CheckpointError
        If a checkpoint cannot be read or is another run's (also a ``ValueError``).
    """
    runs = list(runs)
    if not runs or not all(isinstance(run, Run) for run in runs):
        raise TypeError(f"runs must be one Run or more, got {runs!r}")
    if len({run.pack_key for run in runs}) > 1:
        raise ValueError("runs must share everything but seed, beta, exponents and scale to be trained together")
    if len({run.hash for run in runs}) < len(runs):
        raise ValueError("runs must all be different, got one of them twice")
    checkpoint_every = _count("checkpoint_every", checkpoint_every, 1)
    checkpoint_seconds = _weight("checkpoint_seconds", checkpoint_seconds)
    if n_samples is not None:  # of a single one there is no standard error
        n_samples = _count("n_samples", n_samples, 2)
    first = runs[0]
    if dataset is not None and dataset.name != first.dataset:
        raise ValueError(f"dataset must be the runs' own, {first.dataset!r}, got {dataset.name!r}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = None if checkpoints is None else Path(checkpoints)
    steps = [_checkpoint_step(folder, run) for run in runs]
    if max(steps) > first.total_steps:  # left by longer runs, which lose nothing
        folder, steps = None, [0] * len(runs)

    if dataset is None:
        dataset = data.load(first.dataset, first.source, cache_dir=cache_dir, progress=_shown(progress))
    if first.batch_size > len(dataset):
        raise ValueError(f"batch_size must be at most the data set's {len(dataset)} images, got {first.batch_size}")
    if n_samples is not None and n_samples > len(dataset):
        raise ValueError(f"n_samples must be at most the data set's {len(dataset)} images, got {n_samples}")
    dataset = dataset.to(device)
    if compile is None:
        compile = first.total_steps >= _COMPILE_FROM
    compile = compile and _compiles()

    results: dict[str, Result] = {}
    for step in sorted(set(steps)):
        together = [run for run, own in zip(runs, steps, strict=True) if own == step]
        with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
            pack = _Pack(together, dataset, device, compile)
            died = _train(pack, step, folder, checkpoint_every, checkpoint_seconds, progress, callback)
        for number, run in enumerate(together):
            results[run.hash] = _result(pack, number, died.get(number), evaluation, n_samples, progress)
    return [results[run.hash] for run in runs]


def _compiles() -> bool:
    """Whether there is anything to compile with; what the compiler itself lacks shows at the first step."""
    try:
        importlib.import_module("torch._inductor.compile_fx")
    except Exception as error:  # of many kinds: it reads files of its own, in the encoding of the locale
        _logger.warning("the step runs uncompiled: %s", _first_line(error))
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _train(
    pack: _Pack,
    start: int,
    folder: Path | None,
    checkpoint_every: int,
    checkpoint_seconds: float,
    progress: bool | None,
    callback: Callable[[int, dict[str, np.ndarray]], object] | None,
) -> dict[int, int]:
    """Take all remaining steps; returns the step at which each run that diverged did so, by its number."""
    if start:
        for number, run in enumerate(pack.runs):
            path = _checkpoint(folder, run)
            pack.restore(number, path, start)
            pack.seconds = max(pack.seconds, _read_metadata(path)["seconds"])
    total = pack.run.total_steps
    watch = _Watch(pack)
    saved = pack.seconds
    name = pack.run.key if len(pack.runs) == 1 else f"{len(pack.runs)} runs"
    with _bar(total, "steps", name, progress, start) as bar:
        while True:
            new = pack.step > watch.seen
            watch.look()
            bar.update(pack.step - bar.n)
            if new:
                _show(bar, pack)
                if callback is not None:
                    latest = pack.curve[pack.step - 1].cpu().numpy()
                    callback(pack.step, dict(zip(pack.names, latest, strict=True)))
            if pack.step == total or len(watch.died) == len(pack.runs):
                return watch.died
            began = time.perf_counter()
            for _ in range(_stretch(pack.step, total, checkpoint_every)):
                pack.advance()
            if pack.device.type == "cuda":
                torch.cuda.synchronize(pack.device)
            pack.seconds += time.perf_counter() - began
            due = pack.step % checkpoint_every == 0 and pack.seconds - saved >= checkpoint_seconds
            if folder is not None and (due or pack.step == total):
                saved = pack.seconds
                for number, run in enumerate(pack.runs):
                    metadata = {"course": run.course, "run": run.to_dict(), "step": pack.step, "seconds": pack.seconds}
                    _save_tensors(_checkpoint(folder, run), pack.state(number), **metadata)


def _stretch(step: int, total: int, checkpoint_every: int) -> int:
    """Return how many steps to take before the losses are looked at or a checkpoint is due."""
    return min(every - step % every for every in (_CHECK_EVERY, checkpoint_every, total))


class _Watch:
    """Finds which runs of a pack diverge, and at which step: the same step, however often it looks.

    A resumed pack is looked at from its first step on, since a checkpoint may hold a run that had diverged.
    """

    def __init__(self, pack: _Pack) -> None:
        self.pack = pack
        self.seen = 0
        self.died: dict[int, int] = {}
        self._limit: Tensor | None = None
        self._since: dict[int, int] = {}  # the step from which on a run's loss has been out of bounds

    def look(self) -> None:
        """Take in the terms of the steps since the last look."""
        pack = self.pack
        if pack.step == self.seen:
            return
        terms = pack.curve[self.seen : pack.step].cpu()  # (steps, terms, P)
        losses = terms[:, pack.names.index("loss")].abs()
        if self._limit is None:
            blank = math.log(2) * math.prod(pack.dataset.image_shape)
            self._limit = (_DIVERGED * losses[0].clamp(min=blank)).clamp(max=_MOST_LOSS)
        beyond = ~(losses <= self._limit)  # NaN is beyond any bound
        broken = ~terms.isfinite().all(1)
        for number in range(len(pack.runs)):
            if number not in self.died:
                self._follow(number, beyond[:, number].tolist(), broken[:, number].tolist())
        self.seen = pack.step
        if pack.step == pack.run.total_steps:
            for number in range(len(pack.runs)):
                if number not in self.died and not pack.is_finite(number):
                    self._found(number, pack.step)

    def _follow(self, number: int, beyond: list[bool], broken: list[bool]) -> None:
        patience = min(_PATIENCE, self.pack.run.total_steps)
        for step, (far, ill) in enumerate(zip(beyond, broken, strict=True), self.seen):
            if far:
                self._since.setdefault(number, step)
            else:
                self._since.pop(number, None)
            began = self._since.get(number, step)
            if ill or (far and step + 1 - began >= patience):
                self._found(number, began)
                return

    def _found(self, number: int, step: int) -> None:
        self.died[number] = step
        _logger.warning("%s diverged at step %d", self.pack.runs[number].key, step)


def _bar(total: int, unit: str, description: str, progress: bool | None, start: int = 0) -> tqdm:
    """Return a progress bar on stderr; by default silent where that is no terminal."""
    options = {"unit": f" {unit}", "desc": description, "disable": not _shown(progress), "mininterval": 0.5}
    return tqdm(total=total, initial=start, **options)


def _shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


def _show(bar: tqdm, pack: _Pack) -> None:
    """Show the latest terms in the bar, of a pack the means over the runs that are well."""
    if not bar.disable:
        latest = pack.curve[pack.step - 1].nanmean(1).tolist()
        bar.set_postfix({name: f"{value:.4g}" for name, value in zip(pack.names, latest, strict=True)}, refresh=False)


def _exponents(pack: _Pack, number: int, steps: int | None) -> list[float] | None:
    """Return one run's learned exponents; where it diverged, the last in its ``steps`` that a prior can have."""
    raw = pack.prior.raw
    if raw is None:
        return None
    if steps is None:
        return pack.prior.exponents(raw)[number].tolist()
    held = pack.curve[:steps, -raw.shape[1] :, number].cpu()  # as _term_names has them: last
    good = torch.nonzero(held.log().isfinite().all(1)).flatten()
    return held[good[-1]].tolist() if len(good) else None


def _result(
    pack: _Pack, number: int, diverged_at: int | None, evaluated: bool, n_samples: int | None, progress: bool | None
) -> Result:
    """Measure one run of a pack that has been trained, and make its record."""
    run, dataset = pack.runs[number], pack.dataset
    vae, critic = pack.networks(number)
    steps = pack.step if diverged_at is None else min(diverged_at + 1, pack.step)
    prior = _final_prior(run, _exponents(pack, number, None if diverged_at is None else steps))
    values = pack.curve[:steps, :, number].cpu().numpy()
    curve = {name: values[:, column].copy() for column, name in enumerate(pack.names)}
    record = {
        "hash": run.hash,
        "key": run.key,
        **run.to_dict(),
        "status": "trained" if diverged_at is None else "diverged",
        "diverged_at": diverged_at,
        "total_steps": run.total_steps,
        "reduced": run.reduced,
        "exponents": list(prior.tree.exponents) if isinstance(prior, LpNested) else None,
        "train_seconds": pack.seconds,
        "pack_size": len(pack.runs),
        "compiled": pack.compiled,
        "device": _device_name(pack.device),
        "versions": _versions(),
        "commit": _commit(),
        "images": len(dataset),
        "images_title": dataset.title,
        "images_checksum": dataset.checksum,
        "procedural": dataset.procedural,
    }
    measured = None
    if evaluated and diverged_at is None:
        began = time.perf_counter()
        options = {"device": pack.device, "n_samples": n_samples, "progress": progress}
        try:
            measured = evaluate(vae, prior, run, dataset, **options)
        except DivergedError as error:
            # The losses are of the parameters before each step: what the last one did shows only here.
            _logger.warning("%s", error)
            diverged_at = pack.step
            record |= {"status": "diverged", "diverged_at": diverged_at}
        else:
            record |= _measurements(measured, dataset)
            record["evaluation_seconds"] = time.perf_counter() - began
        vae.cpu()
    return Result(run, vae, critic, prior, curve, diverged_at, record, measured)
