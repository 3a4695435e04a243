r"""A trained decoder small enough to run in a page: low-rank factors of 8-bit weights in a safetensors file.

::

    compressed = export("runs/work/dsprites/models/KEY", Portrait.load("runs/portraits/KEY.npz"))
    compressed.save("runs/decoders/KEY.safetensors")
    CompressedDecoder.load("runs/decoders/KEY.safetensors").decode(z)

and from a shell, for the representatives of each objective and beta in a specification's records (A.5), as far as
their models were kept::

    python -m edition.explorers.decoders runs/dsprites.yaml

**Compression.** The decoder of A.4 has 7.9 million weights, but on samples z of the posteriors of images the
activations before each layer span few directions. Layer by layer, from the first on, the map from activations h (as the
compressed layers before give them) to the original's outputs y is fitted by least squares with a rank r,

.. math:: y \approx A B h + c, \qquad \min_{A, B, c}\ \E \sum_i w_i (y_i - \hat y_i)^2 ,

where w weighs an output by its effect behind its nonlinearity: the mean of :math:`(1 - \tanh^2 y_i)^2` at a hidden
unit, of the Bernoulli variance :math:`p_i (1 - p_i)` at a pixel. This is reduced-rank regression (Izenman, 1975). B is
then rounded to 8 bits with a scale for each row; A is fitted to the rounded activations and rounded in the same way.
Ranks are allotted by the share of a layer's variance that they explain for each byte. Nothing is trained.

**The file** has float32 ``0.weight`` and ``0.bias`` of the first layer; for each later layer l int8 ``l.down`` (B) and
``l.up`` (A), float32 ``l.down.scale`` and ``l.up.scale``, one number for each row, and ``l.bias`` (c). Between layers
is a tanh. ``starts`` (S, K) are posterior means of the images that a portrait's traversals start from. Its metadata
``decoder`` is JSON with the other fields of :class:`CompressedDecoder`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from edition.representatives import find_representative
from isa import data, models, objectives, results
from isa.data import FactorDataset
from isa.latents import Portrait
from isa.sweep import Spec, sweep

__all__ = ["CompressedDecoder", "compress", "export", "low_rank", "main", "representatives", "to_script"]

_FLOOR = 1e-7  # directions of activations whose variance is smaller, relative to the largest, are rounding errors
_BATCH = 2048
_IMAGES = 20_000  # maximum number, drawn at random, to fit to, and of as many others to measure the error on


@dataclass(frozen=True, eq=False)
class CompressedDecoder:
    """A decoder from K latents to images."""

    tensors: Mapping[str, Tensor] = field(repr=False)  #: as in the file
    image: tuple[int, int, int]  #: channels, height and width
    likelihood: str  #: ``"bernoulli"``, where outputs are logits, or ``"gaussian"``, where they are means
    #: number of ``images`` compared, mean absolute error of a ``pixel``'s mean, and ``log_likelihood`` and
    #: ``original_log_likelihood`` in nats an image; empty if it was not measured
    error: Mapping[str, float] = field(default_factory=dict)

    @property
    def ranks(self) -> list[int]:
        """Ranks of all layers but the first."""
        return [len(tensor) for name, tensor in sorted(self.tensors.items()) if name.endswith(".down")]

    def decode(self, z: Tensor) -> Tensor:
        """Return logits, or means under a Gaussian likelihood, ``(B, C, H, W)``, of latents ``(B, K)``; in float32."""
        h = z.float() @ self.tensors["0.weight"].T + self.tensors["0.bias"]
        for layer in range(1, 1 + len(self.ranks)):
            h = _apply(self.tensors, layer, h.tanh())
        return h.view(-1, *self.image)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file and return its path; equal decoders give equal bytes."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"image": self.image, "likelihood": self.likelihood, "error": self.error}
        path.write_bytes(save(dict(self.tensors), {"decoder": json.dumps(about)}))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CompressedDecoder:
        """Read a decoder; a file that is not one raises a ``ValueError`` that names it."""
        try:
            with safetensors.safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["decoder"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            return cls(tensors, tuple(about["image"]), about["likelihood"], about["error"])
        except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a decoder: {error}") from None


def _apply(tensors: Mapping[str, Tensor], layer: int, h: Tensor) -> Tensor:
    for factor in (f"{layer}.down", f"{layer}.up"):
        h = h @ tensors[factor].float().T * tensors[f"{factor}.scale"]
    return h + tensors[f"{layer}.bias"]


def _rounded(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values in 8 bits, the scale of every row, and their product in double precision."""
    scale = matrix.abs().amax(1).clamp(min=1e-30) / 127
    values = (matrix / scale[:, None]).round()
    return values.to(torch.int8).contiguous(), scale.float(), values * scale.float().double()[:, None]


def low_rank(h: Tensor, y: Tensor, weight: Tensor, rank: int) -> dict[str, Tensor]:
    """Fit outputs y ``(N, m)``, with weights ``(m,)``, to activations h ``(N, n)``: reduced-rank regression in 8 bits.

    Return ``down`` (rank, n) and ``up`` (m, rank), each with a ``scale``, and ``bias`` (m,), as in a layer of the file.
    """
    h_mean, y_mean = h.mean(0, dtype=torch.float64), y.mean(0, dtype=torch.float64)
    gram, cross = (torch.zeros(h.shape[1], x.shape[1], dtype=torch.float64) for x in (h, y))
    for left, right in zip(h.split(_BATCH), y.split(_BATCH), strict=True):
        centred = left - h_mean.float()
        gram += centred.T @ centred
        cross += centred.T @ (right - y_mean.float())
    values, vectors = torch.linalg.eigh(gram)
    used = values > _FLOOR * values[-1]
    whiten = vectors[:, used] / values[used].sqrt()
    explained = whiten.T @ (cross * weight.sqrt())
    power, basis = torch.linalg.eigh(explained @ explained.T)
    down, down_scale, inner = _rounded((whiten @ basis[:, -rank:] * power[-rank:].clamp(min=0).sqrt()).T)
    normal = inner @ gram @ inner.T
    normal.diagonal().add_(_FLOOR * normal.diagonal().mean())
    up, up_scale, outer = _rounded(torch.linalg.solve(normal, inner @ cross).T)
    bias = (y_mean - outer @ (inner @ h_mean)).float()
    return {"down": down, "down.scale": down_scale, "up": up, "up.scale": up_scale, "bias": bias}


def _ranks(outputs: list[Tensor], weights: list[Tensor], inputs: list[int], budget: int) -> list[int]:
    """Return the layers' ranks that fit into a number of bytes: largest share of a layer's variance per byte first."""
    shares, costs, layers = [], [], []
    for layer, (y, weight, n) in enumerate(zip(outputs, weights, inputs, strict=True)):
        few = (y - y.mean(0))[: 2 * n] * weight.sqrt()
        spectrum = torch.linalg.svdvals(few)[: min(n, y.shape[1])].square()
        costs.append(torch.full_like(spectrum, n + 4 + y.shape[1]))
        shares.append(spectrum / spectrum.sum() / costs[-1])
        layers.append(torch.full_like(spectrum, layer, dtype=torch.long))
    order = torch.cat(shares).argsort(descending=True, stable=True)
    affordable = order[torch.cat(costs)[order].cumsum(0) <= budget]
    ranks = torch.cat(layers)[affordable].bincount(minlength=len(outputs)).tolist()
    if min(ranks) == 0:
        raise ValueError("most_bytes must allow every layer a rank of 1")
    return ranks


@torch.no_grad()
def compress(
    model: models.VAE, mean: Tensor, log_var: Tensor, likelihood: str = "bernoulli", most_bytes: int = 2_000_000
) -> CompressedDecoder:
    """Compress a model's decoder, so that it stays close on samples of these posteriors.

    ``model``: a decoder of linear layers with tanh between them, as the perceptrons of A.4; ``mean``, ``log_var``:
    ``(N, K)`` posteriors of N images, more than a layer is wide, of which one sample each is used; ``likelihood``: of
    the decoder's outputs, ``"bernoulli"`` or ``"gaussian"``; ``most_bytes``: maximum size of the weights.
    """
    first, *linear = list(model.decoder.net)[::2]
    outputs = [first(_samples(mean, log_var, seed=0))]  # of every layer, before its nonlinearity
    for layer in linear:
        outputs.append(layer(outputs[-1].tanh()))
    h, *outputs = outputs
    weights = [(1 - y.tanh().square()).square().mean(0) for y in outputs[:-1]]
    p = outputs[-1].sigmoid()
    weights.append((p * (1 - p)).mean(0) if likelihood == "bernoulli" else torch.ones_like(p[0]))
    weights = [weight + 1e-6 * weight.max() for weight in weights]

    tensors = {"0.weight": first.weight.float().clone(), "0.bias": first.bias.float().clone()}
    budget = most_bytes - 4 * sum(tensor.numel() for tensor in tensors.values()) - 8 * sum(y.shape[1] for y in outputs)
    ranks = _ranks(outputs, weights, [layer.in_features for layer in linear], budget)
    for layer, (y, weight, rank) in enumerate(zip(outputs, weights, ranks, strict=True), 1):
        h = h.tanh()
        tensors |= {f"{layer}.{name}": tensor for name, tensor in low_rank(h, y, weight, rank).items()}
        h = _apply(tensors, layer, h)
    return CompressedDecoder(tensors, (model.channels, models.IMAGE_SIZE, models.IMAGE_SIZE), likelihood)


def _samples(mean: Tensor, log_var: Tensor, seed: int) -> Tensor:
    return models.Posterior(mean.float(), log_var.float()).sample(generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def export(
    folder: str | os.PathLike[str], portrait: Portrait, dataset: FactorDataset | None = None
) -> CompressedDecoder:
    """Compress the decoder of a kept model, and measure it on images that it was not fitted to.

    The folder has ``model.safetensors``, as ``isa sweep --keep-models`` leaves it, and ``portrait`` is that of the run.
    By default the run's data set is loaded.
    """
    run, model, _ = results.load_model(folder)
    dataset = data.load(run.dataset, run.source) if dataset is None else dataset
    index = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[: 2 * _IMAGES]
    posteriors = [model.encode(dataset.images(part)) for part in index.split(_BATCH)]
    mean, log_var = (torch.cat([getattr(one, name) for one in posteriors]) for name in ("mean", "log_var"))
    fitted = len(index) // 2
    compressed = compress(model, mean[:fitted], log_var[:fitted], run.likelihood)

    means = torch.sigmoid if run.likelihood == "bernoulli" else torch.clone
    log_likelihood, rows = objectives.LIKELIHOODS[run.likelihood], []
    samples = _samples(mean[fitted:], log_var[fitted:], seed=1)
    for part, z in zip(index[fitted:].split(_BATCH), samples.split(_BATCH), strict=True):
        x, ours, theirs = dataset.images(part), compressed.decode(z), model.decode(z)
        change = (means(ours) - means(theirs)).abs().mean((1, 2, 3))
        rows.append(torch.stack([change, log_likelihood(ours, x), log_likelihood(theirs, x)]))
    names = ("pixel", "log_likelihood", "original_log_likelihood")
    error = dict(zip(names, torch.cat(rows, 1).double().mean(1).tolist(), strict=True))
    tensors = {**compressed.tensors, "starts": model.encode(torch.from_numpy(portrait.originals) / 255).mean}
    return replace(compressed, tensors=tensors, error={"images": len(samples), **error})


def to_script(path: str | os.PathLike[str]) -> str:
    """Return a script with the file of a decoder: a page that was opened from disk can load no other kind of file."""
    path = Path(path)
    CompressedDecoder.load(path)
    text = base64.b64encode(path.read_bytes()).decode()
    return f"Explorers.latents.receive({json.dumps(path.stem)}, {json.dumps(text)});\n"


def representatives(spec: Spec) -> list[str]:
    """Return the keys of the runs that represent each objective and beta in a specification's records (A.5).

    If the runs of a kind were trained in several ways, the first in the specification counts.
    """
    records, first = sweep(spec, budget=0), {}
    for row in records.select(status="trained"):
        first.setdefault((row["objective"], row["beta"]), row)
    way = ("objective", "beta", "total_steps", "batch_size", "prior", "learn_exponents")
    kinds = [records.select(**{field: row[field] for field in way}) for row in first.values()]
    return [find_representative([kind], ()).record["key"] for kind in kinds]


def main(argv: Sequence[str] | None = None) -> int:
    """Write decoders for pages, as ``python -m edition.explorers.decoders``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m edition.explorers.decoders",
        description="Compress the decoders of the models that represent each objective and beta, as "
        "`isa sweep SPEC --keep-models` left them, and measure the error.",
    )
    parser.add_argument("spec", metavar="SPEC", help="specification of the models' runs, *.yaml")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("runs/decoders"), help="(runs/decoders)")
    arguments = parser.parse_args(argv)
    try:
        spec = Spec.read(arguments.spec)
        keys = representatives(spec)
        folder = spec.work / "models"
        kept = [key for key in keys if (folder / key).is_dir()]
        if not kept:
            raise ValueError(f"none of {len(keys)} representatives is in {folder}: train with --keep-models")
        for key in kept:
            portrait = Portrait.load(spec.path.parent / "portraits" / f"{key}.npz")
            compressed = export(folder / key, portrait)
            path, error = compressed.save(arguments.output / f"{key}.safetensors"), compressed.error
            print(
                f"{path}: {path.stat().st_size:,} bytes, ranks {compressed.ranks}; on {error['images']:,} other images "
                f"mean absolute error of a pixel {error['pixel']:.5f}, log-likelihood {error['log_likelihood']:.3f} "
                f"in place of {error['original_log_likelihood']:.3f} nats"
            )
        if missing := len(keys) - len(kept):
            print(f"{missing} other representatives were not kept")
    except (ValueError, OSError) as error:
        print(f"edition.explorers.decoders: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
