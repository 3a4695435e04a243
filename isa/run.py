"""Definition of a run: every choice that changes the result of a training, and a hash of these choices."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.functional_validators import AfterValidator, BeforeValidator, WrapValidator

from isa import models
from isa.data.base import seeded_generator
from isa.prior import LpNested, Node

__all__ = ["DEFAULTS", "OBJECTIVES", "Defaults", "Run"]


class Defaults(NamedTuple):
    """Default settings of one data set."""

    model: str
    latent_dim: int
    epochs: float
    subspaces: tuple[int, ...]
    p1: float  # of fixed exponents; learned ones start at 2
    images: int
    scored: tuple[int, ...] | None  # factors in the MIG, all if None


DEFAULTS: dict[str, Defaults] = {
    "dsprites": Defaults("mlp", 20, 20, (4, 4, 4, 4, 4), 2.2, 737_280, (1, 2, 3, 4)),
    "faces3d": Defaults("mlp", 10, 1500, (4, 3, 3), 1.9, 127_050, (1, 2, 3)),
    "cars3d": Defaults("conv", 18, 1000, (6, 6, 6), 2.2, 17_568, None),
}
"""Tables 1 (dsprites) and 2 (faces3d). The paper does not print the subspaces of faces3d (three here, as in A.2), nor
any hyperparameters of cars3d (three subspaces of six here, and about as many steps as on dSprites). The MIG leaves out
the shape in dSprites, as in the paper, and the identity of a face."""

Objective = Literal["beta-vae", "isa-vae", "beta-tcvae", "isa-tcvae", "factor-vae"]
OBJECTIVES: dict[str, str] = {name: name.replace("isa-", "beta-") for name in get_args(Objective)}
"""Key in ``isa.objectives.OBJECTIVES`` of each objective. The prefix isa- stands for an ISA prior."""

_SHAPE = {"dataset", "model", "latent_dim", "batch_size", "learning_rate", "likelihood", "precision"}
_FORMAT = 1  # part of every hash; raise it when a change of this package changes the result of a run

Text = Annotated[str, BeforeValidator(lambda path: str(path) if isinstance(path, Path) else path)]
Count = Annotated[int, Field(strict=True, ge=1)]
Weight = Annotated[float, Field(strict=True, ge=0, le=1e38), AfterValidator(abs)]  # one hash for 0.0 and -0.0
Positive = Annotated[float, Field(strict=True, gt=0, le=1e38)]
_Filled = WrapValidator(lambda value, check: value if value is None else check(value))  # None until Run fills it in


def _sentence(error: ValidationError) -> str:
    """Return the first error in one sentence that names the field, its value and what is allowed."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    name = first["loc"][0]
    if first["type"] == "extra_forbidden":
        return f"{name!r} is not a field of Run: the fields are {', '.join(Run.model_fields)}"
    return f"{re.sub('^[A-Z][a-z]+ should', f'{name} must', first['msg'])}, got {first['input']!r}"


@cache  # a sweep has thousands of runs, and few trees
def _tree(
    prior: str, p0: float | None, p1: float | tuple[float, ...] | None, subspaces: tuple[int, ...] | None
) -> Node:
    if p0 is None or p1 is None or subspaces is None:  # unless the prior is "isa"
        return Node.parse(prior)
    exponents = p1 if isinstance(p1, tuple) else (p1,) * len(subspaces)
    return Node(p0, [Node(p, size) for p, size in zip(exponents, subspaces, strict=True)])


class Run(BaseModel):
    """Everything that determines the result of one training.

    Fields left out take the data set's defaults (:data:`DEFAULTS`). A bad one raises a ``ValueError`` of one sentence.

    Parameters
    ----------
    dataset, source
        Data set, and the path of its published files; None for the images that this package draws. The hash depends on
        whether there is a source, not on its path.
    objective, beta
        ``"beta-vae"`` (Eq. 2), ``"isa-vae"`` (Eq. 12), ``"beta-tcvae"`` (Eq. 3), ``"isa-tcvae"`` or ``"factor-vae"``,
        and the weight of its divergence (beta-vae, isa-vae) or total correlation (the others).
    seed
        Seed of the initial parameters, the order of the images and all noise.
    prior
        ``"normal"``, N(0, I); ``"isa"``; or the text of any tree, such as ``"2.1[5*2.2[4]]"``. The default follows from
        the objective.
    subspaces, p0, p1, scale, learn_exponents
        Sizes of the ISA prior's subspaces, and its exponents, ``p1`` one number or one for each subspace; s of Eq. 11,
        or ``"unit"`` for latents of variance 1; learn all exponents except the root's, starting from these.
    model, latent_dim
        ``"mlp"`` or ``"conv"``; the number of latents follows from the prior if it has a tree.
    epochs, steps, batch_size, learning_rate, exponent_learning_rate
        Passes over the data, or number of steps instead; images per step (an incomplete last batch of an epoch is left
        out); Adam's learning rates.
    likelihood, kl, sampling, precision
        ``"bernoulli"`` or ``"gaussian"`` pixels; ``"monte_carlo"`` divergence by one sample (Eq. 12), or
        ``"closed_form"`` (normal prior, no TCVAE objective); ``"weighted"`` or ``"stratified"`` aggregate posterior in
        TCVAE objectives; ``"bf16"`` or ``"fp32"`` matrix multiplications and convolutions.

    Examples
    --------
    >>> run = Run(objective="isa-vae", seed=3)
    >>> run.total_steps, str(run.tree), run.key.startswith("dsprites-isa-vae-1-seed3-")
    (7200, '2.1[5*2.2[4]]', True)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Literal["dsprites", "faces3d", "cars3d"] = "dsprites"
    source: Text | None = None
    objective: Objective = "beta-vae"
    beta: Weight = 1.0
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    prior: Annotated[str, _Filled] = None  # type: ignore[assignment]
    subspaces: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    p0: Positive | None = None
    p1: Positive | tuple[Positive, ...] | None = None
    scale: Positive | Literal["unit"] | None = None
    learn_exponents: Annotated[bool, Field(strict=True)] = False
    model: Annotated[str, _Filled] = None  # type: ignore[assignment]
    latent_dim: Annotated[Count, Field(le=models.IMAGE_SIZE**2), _Filled] = None  # type: ignore[assignment]
    epochs: Annotated[Positive, Field(le=100_000), _Filled] = None  # type: ignore[assignment]
    steps: Annotated[Count, Field(le=100_000_000)] | None = None
    batch_size: Count = 2048
    learning_rate: Positive = 1e-3
    exponent_learning_rate: Positive = 5e-4
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    kl: Literal["monte_carlo", "closed_form"] = "monte_carlo"
    sampling: Literal["weighted", "stratified"] = "weighted"
    precision: Literal["bf16", "fp32"] = "bf16"

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(_sentence(error)) from None

    @model_validator(mode="after")
    def _complete(self) -> Run:
        """Fill in the defaults of the data set, and check fields against one another."""
        defaults, isa = DEFAULTS[self.dataset], self.objective.startswith("isa-")
        self._fill(model=defaults.model, epochs=float(defaults.epochs), prior="isa" if isa else "normal")
        normal, size = self.prior == "normal", self.batch_size
        self._refuse("model", self.model not in models.MODELS, f"must be one of {', '.join(models.MODELS)}")
        self._refuse("batch_size", size > defaults.images, f"must be at most {defaults.images:,}")
        for name in ("subspaces", "p0", "p1"):
            self._refuse(name, self.prior != "isa" and getattr(self, name) is not None, "requires the prior 'isa'")
        self._refuse("prior", normal and isa, "must be 'isa' or the text of a tree with this objective")
        self._refuse("scale", normal and self.scale is not None, "requires an ISA prior")
        self._refuse("learn_exponents", normal and self.learn_exponents, "requires an ISA prior")
        wrong = self.kl == "closed_form" and (self.base == "beta-tcvae" or not normal)
        self._refuse("kl", wrong, "must be monte_carlo with an ISA prior and with TCVAE objectives")
        wrong = self.sampling == "stratified" and size < 2
        self._refuse("batch_size", wrong, "must be at least 2 for sampling 'stratified'")
        if self.prior == "isa":
            self._fill(subspaces=defaults.subspaces, p0=2.1, p1=2.0 if self.learn_exponents else defaults.p1)
            number = len(self.subspaces or ())
            wrong = isinstance(self.p1, tuple) and len(self.p1) != number
            self._refuse("p1", wrong, f"must be one number or {number}, one for each subspace")
        try:
            tree = self.tree
        except ValueError as error:
            raise ValueError(f"prior must be 'normal', 'isa' or the text of a tree: {error}") from None
        if tree is None:
            self._fill(latent_dim=defaults.latent_dim)
            return self
        self._fill(scale=1.0, latent_dim=tree.n_leaves)
        wrong = self.scale == "unit" and self.learn_exponents
        self._refuse("scale", wrong, "must be a number if exponents are learned")
        if self.scale == "unit":
            LpNested(tree, "unit")  # raises if no single scale gives every latent variance 1
        wrong = self.latent_dim != tree.n_leaves
        self._refuse("latent_dim", wrong, f"must be {tree.n_leaves}, the number of leaves of {tree}")
        return self

    def _fill(self, **values: Any) -> None:
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _refuse(self, name: str, wrong: bool, allowed: str) -> None:
        if wrong:
            raise ValueError(f"{name} {allowed}, got {getattr(self, name)!r}")

    @property
    def base(self) -> str:
        """Objective without its prior, ``"beta-vae"``, ``"beta-tcvae"`` or ``"factor-vae"``."""
        return OBJECTIVES[self.objective]

    @cached_property
    def tree(self) -> Node | None:
        """The prior's tree, with the initial values of learned exponents; None for the normal prior."""
        return None if self.prior == "normal" else _tree(self.prior, self.p0, self.p1, self.subspaces)

    @property
    def total_steps(self) -> int:
        """Number of steps."""
        return self.steps or max(1, round(self.epochs * (DEFAULTS[self.dataset].images // self.batch_size)))

    @property
    def reduced(self) -> bool:
        """True if the run sees fewer images than at the paper's scale; such a result is labelled."""
        defaults = DEFAULTS[self.dataset]
        return self.total_steps * self.batch_size < 0.99 * defaults.epochs * (defaults.images // 2048) * 2048

    @cached_property
    def hash(self) -> str:
        """Sixteen hexadecimal digits, equal for equivalent descriptions, such as an ISA prior and its tree's text."""
        return self._digest(steps=self.total_steps)

    @property
    def course(self) -> str:
        """Hash of everything except the number of steps; a shorter run of a course is a part of a longer one."""
        return self._digest()

    def _digest(self, **values: Any) -> str:
        values |= self.model_dump(include=_SHAPE | {"beta", "seed"}) | {
            "objective": self.base,
            "source": "drawn" if self.source is None else "published",
            "prior": "normal" if self.tree is None else str(self.tree),
            "format": _FORMAT,
            "estimate": self.sampling if self.base == "beta-tcvae" else self.kl,
        }
        if self.tree is not None:
            values |= {"scale": self.scale, "learned": self.exponent_learning_rate if self.learn_exponents else None}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def key(self) -> str:
        """Name for files and lists: data set, objective, beta, seed and hash."""
        return f"{self.dataset}-{self.objective}-{self.beta:g}-seed{self.seed}-{self.hash}"

    @property
    def pack_key(self) -> tuple:
        """Key of runs that can be trained together: they share all but seed, beta, exponents and scale."""
        prior = self.tree and (self.tree.structure, self.learn_exponents, self.exponent_learning_rate)
        fields = self.model_dump(include=_SHAPE | {"source", "kl", "sampling"})
        return (*fields.values(), self.base, self.total_steps, prior)

    def generator(self, device: torch.device | str, *stream: int) -> torch.Generator:
        """Return a generator of the run's random numbers, whose state is a function of the seed and of ``stream``."""
        return seeded_generator(device, self.seed, *stream)

    def replace(self, **values: Any) -> Run:
        """Return a run with some fields changed."""
        return Run(**(self.model_dump() | values))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, the arguments of :class:`Run`, as JSON represents them."""
        return self.model_dump(mode="json")
