r"""A trained decoder small enough to run in a page: low-rank factors of 8-bit weights, in a file of its own.

::

    exhibit = export("runs/work/dsprites/models/KEY")       # a model that a sweep has kept
    exhibit.save("runs/decoders/KEY.bin")
    CompressedDecoder.load("runs/decoders/KEY.bin").decode(z)

and from a shell, for the representatives of the two objectives in a specification's records (A.5), or for any model::

    python -m edition.explorers.decoders runs/dsprites.yaml
    python -m edition.explorers.decoders runs/work/dsprites/models/KEY

**How it is made smaller.** The decoder of A.4 has 7.9 million weights, but on samples z of the posteriors of images
the activations before each layer fill few directions. Layer by layer, from the first on, the map from activations h
(as the compressed layers before give them) to the original's outputs y is fitted by least squares with a rank r,

.. math:: y \approx A B h + c, \qquad \min_{A, B, c}\ \E \sum_i w_i (y_i - \hat y_i)^2 ,

where w weighs an output by how much it matters behind its nonlinearity: the mean of :math:`(1 - \tanh^2 y_i)^2`
within, of the Bernoulli variance :math:`p_i (1 - p_i)` at the pixels. This is reduced-rank regression (Izenman, 1975).
B is then rounded to 8 bits with a scale a row; A is fitted to the rounded activations, and rounded in the same way.
Each byte of the file goes to the rank that explains most. Nothing is trained.

**The file** is little-endian: eight bytes ``ISADEC1\n``; the length of the header, uint32; the header, JSON in UTF-8,
padded by spaces to a multiple of four; then every matrix of every layer in the order in which they are applied, each as
float32 scales, one a row, and int8 values, row after row, padded by zeros to a multiple of four (where ``bits`` is 32
there are no scales, and the values are float32), and after the matrices of a layer its float32 biases. Between layers
is a tanh. The header has ``layers``, a list of ``{"bits", "sizes"}`` with sizes [inputs, outputs] or
[inputs, rank, outputs]; ``image``, its three sizes; ``likelihood``; and ``about``, see :class:`CompressedDecoder`.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edition.stats import representative
from isa import data, latents, models, objectives, results
from isa.data import FactorDataset
from isa.mig import active_units
from isa.sweep import Spec, sweep

__all__ = ["CompressedDecoder", "Layer", "Regression", "compress", "export", "main", "representatives", "to_script"]

_MAGIC = b"ISADEC1\n"
_RUN = ("key", "hash", "dataset", "objective", "beta", "seed", "prior", "subspaces", "p0", "p1", "scale")
_RUN += ("learn_exponents", "exponents", "total_steps", "batch_size", "reduced", "mig", "log_likelihood")
_RUN += ("active_units", "images_title", "procedural", "commit")
"""Fields kept of a run's record."""
_FLOOR = 1e-7  # of the largest eigenvalue: directions of activations below it are rounding errors
_BATCH = 2048


class Layer(NamedTuple):
    """Matrices that are applied one after the other, and biases that are added.

    Each matrix is ``(scale, values)``: float32 ``(m,)`` and int8 ``(m, n)``, or None and float32 ``(m, n)``.
    """

    matrices: tuple[tuple[np.ndarray | None, np.ndarray], ...]
    bias: np.ndarray

    @property
    def sizes(self) -> list[int]:
        """Inputs, rank where there is one, outputs."""
        return [self.matrices[0][1].shape[1], *(values.shape[0] for _, values in self.matrices)]

    @property
    def bits(self) -> int:
        """Of a value: 8 or 32."""
        return 32 if self.matrices[0][0] is None else 8


@dataclass(frozen=True, eq=False)
class CompressedDecoder:
    """A decoder from K latents to images, with the data of a page about it.

    ``about`` is empty, or as :func:`export` makes it: ``run``, fields of its record; ``sliders``, a dict for each
    active latent, with ``latent`` from 0, the ``factor`` that it has most information on, ``nats``, and ``low`` and
    ``high``, the minimum and maximum of its posterior mean; ``starts``, with ``name``, ``z`` of K numbers, and
    ``image``, base64 of its bytes; and ``error``, with the number of ``images``, ``pixel``, the mean absolute error of
    a pixel's mean, and ``log_likelihood`` and ``original_log_likelihood`` in nats an image.
    """

    layers: tuple[Layer, ...]
    """Between them is a tanh."""
    image: tuple[int, int, int]
    """Channels, height and width."""
    likelihood: str
    """``"bernoulli"``, where outputs are logits, or ``"gaussian"``, where they are means."""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def latents(self) -> int:
        """Number of latents K."""
        return self.layers[0].sizes[0]

    @cached_property
    def _tensors(self) -> list[tuple[list[Tensor], Tensor]]:
        def dense(scale: np.ndarray | None, values: np.ndarray) -> Tensor:
            return torch.from_numpy(values if scale is None else scale[:, None] * values)

        return [([dense(*one) for one in layer.matrices], torch.from_numpy(layer.bias)) for layer in self.layers]

    def decode(self, z: Tensor) -> Tensor:
        """Return logits, or means under a Gaussian likelihood, ``(B, C, H, W)``, of latents ``(B, K)``; in float32."""
        h = z.float()
        for number, (matrices, bias) in enumerate(self._tensors):
            h = h if number == 0 else h.tanh()
            for matrix in matrices:
                h = h @ matrix.T
            h = h + bias
        return h.view(-1, *self.image)

    def pixels(self, z: Tensor) -> Tensor:
        """Return the mean of every pixel, ``(B, C, H, W)``: probabilities under a Bernoulli likelihood."""
        return _pixels(self.decode(z), self.likelihood)

    def traversals(self, start: str, steps: int) -> tuple[list[str], np.ndarray]:
        """Return labels and images, uint8 ``(rows, steps, C, H, W)``, along every active latent.

        They begin at the start of this name, or at the first if there is none.
        """
        starts = {one["name"]: one["z"] for one in reversed(self.about["starts"])}
        z = torch.tensor(starts.get(start, self.about["starts"][0]["z"]))
        sliders = self.about["sliders"]
        along = z.repeat(len(sliders), steps, 1)
        for row, one in enumerate(sliders):
            along[row, :, one["latent"]] = torch.linspace(one["low"], one["high"], steps)
        images = (self.pixels(along.flatten(0, 1)).clamp(0, 1) * 255).round().to(torch.uint8)
        labels = [f"$z_{{{one['latent'] + 1}}}$\n{one['factor']}\n{one['nats']:.2f} nats" for one in sliders]
        return labels, images.view(len(sliders), steps, *self.image).numpy()

    def to_bytes(self) -> bytes:
        """Return the file's content; the same decoder gives the same bytes."""
        header = {
            "layers": [{"bits": layer.bits, "sizes": layer.sizes} for layer in self.layers],
            "image": list(self.image),
            "likelihood": self.likelihood,
            "about": self.about,
        }
        text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        parts = [_MAGIC, struct.pack("<I", len(text)), text]
        for layer in self.layers:
            for scale, values in layer.matrices:
                parts += [] if scale is None else [scale.astype("<f4").tobytes()]
                matrix = values.astype("<f4" if scale is None else "i1").tobytes()
                parts.append(matrix + bytes(-len(matrix) % 4))
            parts.append(layer.bias.astype("<f4").tobytes())
        return b"".join(parts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.to_bytes())
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CompressedDecoder:
        """Read a decoder; a ValueError names a file that is not one, or is truncated."""
        try:
            return cls._of(Path(path).read_bytes())
        except (ValueError, TypeError, KeyError, struct.error) as error:
            raise ValueError(f"{path} is not a decoder: {error}") from None

    @classmethod
    def _of(cls, contents: bytes) -> CompressedDecoder:
        if not contents.startswith(_MAGIC):
            raise ValueError(f"it does not begin with {_MAGIC.decode().strip()}")
        (length,) = struct.unpack_from("<I", contents, len(_MAGIC))
        position = len(_MAGIC) + 4 + length
        header = json.loads(contents[len(_MAGIC) + 4 : position])

        def take(kind: str, *shape: int) -> np.ndarray:
            nonlocal position
            values = np.frombuffer(contents, kind, math.prod(shape), position).reshape(shape)
            position += -(-values.nbytes // 4) * 4
            return values.astype(np.float32 if kind == "<f4" else np.int8)

        layers = []
        for layer in header["layers"]:
            matrices = []
            for columns, rows in pairwise(layer["sizes"]):
                scale = take("<f4", rows) if layer["bits"] == 8 else None
                matrices.append((scale, take("<f4" if scale is None else "i1", rows, columns)))
            layers.append(Layer(tuple(matrices), take("<f4", layer["sizes"][-1])))
        if position != len(contents):
            raise ValueError(f"it has {len(contents):,} bytes in place of {position:,}")
        return cls(tuple(layers), tuple(header["image"]), header["likelihood"], header["about"])


def _pixels(decoded: Tensor, likelihood: str) -> Tensor:
    return decoded.sigmoid() if likelihood == "bernoulli" else decoded


def _layer_bytes(bits: int, sizes: Sequence[int]) -> int:
    size = 4 * sizes[-1]
    for columns, rows in pairwise(sizes):
        size += 4 * rows * columns if bits == 32 else 4 * rows + -(-rows * columns // 4) * 4
    return size


def _rank_bytes(inputs: int, outputs: int) -> int:
    """Return the maximum number of bytes of one more rank in 8 bits."""
    return 4 + inputs + 3 + outputs + 3


def _rounded(matrix: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale of every row, and its values in 8 bits."""
    scale = matrix.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return scale[:, 0].float().numpy(), (matrix / scale).round().to(torch.int8).numpy()


class Regression:
    """Reduced-rank regression of outputs y ``(N, m)``, with weights ``(m,)``, on activations h ``(N, n)``."""

    def __init__(self, h: Tensor, y: Tensor, weight: Tensor) -> None:
        self.h_mean, self.y_mean = h.mean(0, dtype=torch.float64), y.mean(0, dtype=torch.float64)
        self.gram = torch.zeros(h.shape[1], h.shape[1], dtype=torch.float64)
        self.cross = torch.zeros(h.shape[1], y.shape[1], dtype=torch.float64)
        for left, right in zip(h.split(_BATCH), y.split(_BATCH), strict=True):
            centred = left - self.h_mean.float()
            self.gram += centred.T @ centred
            self.cross += centred.T @ (right - self.y_mean.float())
        self.gram /= len(h)
        self.cross /= len(h)
        self.weight = weight
        values, vectors = torch.linalg.eigh(self.gram)
        kept = values > _FLOOR * values[-1].clamp(min=1e-30)
        self.whiten = vectors[:, kept] / values[kept].sqrt()
        # rows: unit directions of h; what each explains of the weighted outputs
        explained = self.whiten.T @ (self.cross * weight.sqrt())
        power, basis = torch.linalg.eigh(explained @ explained.T)
        self.power, self.basis = power.flip(0).clamp(min=0), basis.flip(1)

    def layer(self, rank: int) -> Layer:
        """Fit the two factors and the biases, the second factor to what the first became by rounding."""
        size = self.power[:rank].sqrt()
        inner = _rounded((self.basis[:, :rank] * size).T @ self.whiten.T)
        down = torch.from_numpy(inner[0][:, None] * inner[1]).double()
        gram = down @ self.gram @ down.T
        gram.diagonal().add_(_FLOOR * gram.diagonal().mean())
        outer = _rounded(torch.linalg.solve(gram, down @ self.cross).T)
        up = torch.from_numpy(outer[0][:, None] * outer[1]).double()
        bias = self.y_mean - up @ (down @ self.h_mean)
        return Layer((inner, outer), bias.float().numpy())


def _ranks(spectra: Sequence[Tensor], sizes: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Assign ranks, each to the layer where it explains most of the layer's outputs for its bytes."""
    ranks = [1] * len(sizes)
    most = [
        min(int((power > 0).sum()), math.ceil(n * m / (n + m))) for power, (n, m) in zip(spectra, sizes, strict=True)
    ]
    room -= sum(_rank_bytes(n, m) for n, m in sizes)
    while True:
        open_layers = [i for i, (n, m) in enumerate(sizes) if ranks[i] < most[i] and _rank_bytes(n, m) <= room]
        if room < 0 or not open_layers:
            return ranks

        def gain(i: int) -> float:
            return float(spectra[i][ranks[i]] / spectra[i].sum()) / _rank_bytes(*sizes[i])

        best = max(open_layers, key=gain)
        ranks[best] += 1
        room -= _rank_bytes(*sizes[best])


@torch.no_grad()
def compress(
    model: models.VAE,
    mean: Tensor,
    log_var: Tensor,
    *,
    likelihood: str = "bernoulli",
    most_bytes: int = 2_000_000,
    seed: int = 0,
) -> CompressedDecoder:
    """Compress a model's decoder, so that it stays close on samples of these posteriors.

    Parameters
    ----------
    model
        Its decoder must be linear layers with tanh between them, as the perceptrons of A.4.
    mean, log_var
        ``(N, K)`` posteriors of N images, more than a layer is wide; one sample of each is used.
    likelihood
        Of the decoder's outputs, ``"bernoulli"`` or ``"gaussian"``.
    most_bytes
        Maximum size of the weights.
    seed
        Of the samples.

    Returns
    -------
    CompressedDecoder
        With an empty ``about``.
    """
    linear, between = list(model.decoder.net)[::2], list(model.decoder.net)[1::2]
    if not all(isinstance(one, nn.Linear) for one in linear) or not all(isinstance(one, nn.Tanh) for one in between):
        raise ValueError("model must have a decoder of linear layers with tanh between them, as the perceptrons of A.4")
    widest = max(one.in_features for one in linear)
    z = _samples(mean, log_var, seed)
    sizes = [(one.in_features, one.out_features) for one in linear]
    first = Layer(((None, linear[0].weight.float().numpy().copy()),), linear[0].bias.float().numpy().copy())
    fixed = _layer_bytes(32, sizes[0]) + sum(_layer_bytes(8, (n, 1, m)) - _rank_bytes(n, m) for n, m in sizes[1:])
    room = most_bytes - fixed
    if room < sum(_rank_bytes(n, m) for n, m in sizes[1:]):
        raise ValueError(f"most_bytes must leave room for a rank of every layer, got {most_bytes}")

    outputs = []  # of every layer but the first, before its nonlinearity
    h = linear[0](z)
    for layer in linear[1:]:
        outputs.append(layer(h.tanh()))
        h = outputs[-1]
    weights = [(1 - y.tanh().square()).square().mean(0, dtype=torch.float64) for y in outputs[:-1]]
    if likelihood == "bernoulli":
        p = outputs[-1].sigmoid()
        weights.append((p * (1 - p)).mean(0, dtype=torch.float64))
    else:
        weights.append(torch.ones(outputs[-1].shape[1], dtype=torch.float64))
    weights = [weight + 1e-6 * weight.max() for weight in weights]

    inputs = [linear[0](z), *outputs[:-1]]
    few = slice(max(2 * widest, _BATCH))  # enough to deal the ranks by
    spectra = [Regression(h[few].tanh(), y[few], w).power for h, y, w in zip(inputs, outputs, weights, strict=True)]
    layers, h = [first], inputs[0]
    for y, weight, rank in zip(outputs, weights, _ranks(spectra, sizes[1:], room), strict=True):
        activation = h.tanh()
        layers.append(Regression(activation, y, weight).layer(rank))
        h = activation
        for scale, values in layers[-1].matrices:
            h = h @ torch.from_numpy(scale[:, None] * values).T
        h = h + torch.from_numpy(layers[-1].bias)
    return CompressedDecoder(tuple(layers), (model.channels, models.IMAGE_SIZE, models.IMAGE_SIZE), likelihood)


def _samples(mean: Tensor, log_var: Tensor, seed: int) -> Tensor:
    return models.Posterior(mean.float(), log_var.float()).sample(generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _posteriors(model: models.VAE, dataset: FactorDataset, index: Tensor) -> tuple[Tensor, Tensor]:
    found = [model.encode(dataset.images(part)) for part in index.split(_BATCH)]
    return torch.cat([one.mean for one in found]), torch.cat([one.log_var for one in found])


@torch.no_grad()
def _error(
    compressed: CompressedDecoder, model: models.VAE, dataset: FactorDataset, index: Tensor, z: Tensor
) -> dict[str, float]:
    """Compare both decoders at samples z of the posteriors of these images."""
    log_likelihood = objectives.LIKELIHOODS[compressed.likelihood]
    sums = torch.zeros(3, dtype=torch.float64)
    for batch, part in zip(index.split(_BATCH), z.split(_BATCH), strict=True):
        x, ours, theirs = dataset.images(batch), compressed.decode(part), model.decode(part)
        far = (_pixels(ours, compressed.likelihood) - _pixels(theirs, compressed.likelihood)).abs()
        sums += torch.stack(
            [far.double().mean((1, 2, 3)).sum(), *(log_likelihood(y, x).double().sum() for y in (ours, theirs))]
        )
    pixel, ours, theirs = (sums / len(index)).tolist()
    return {"images": len(index), "pixel": pixel, "log_likelihood": ours, "original_log_likelihood": theirs}


def export(
    folder: str | os.PathLike[str],
    dataset: FactorDataset | None = None,
    *,
    most_bytes: int = 2_000_000,
    fitted: int = 20_000,
    measured: int = 20_000,
    seed: int = 0,
) -> CompressedDecoder:
    """Compress the decoder of a kept model, and measure it.

    Parameters
    ----------
    folder
        Of a model, as ``isa sweep --keep-models`` leaves them: ``model.safetensors`` and ``record.json``.
    dataset
        Its images; by default they are loaded.
    most_bytes
        See :func:`compress`.
    fitted, measured
        Numbers of images, drawn at random without repetition, that the factors are fitted to, and of others over which
        the error is measured; at most half of the images each.
    seed
        Of the choice of images, and of the samples.
    """
    folder = Path(folder)
    record = results.read_record(folder / "record.json")
    run, model, _ = results.load_model(folder)
    if record["hash"] != run.hash or record.get("mig") is None:
        raise ValueError(f"{folder} must hold a model with its record, and the run must have been measured")
    record |= {**run.to_dict(), "key": run.key}
    dataset = data.load(run.dataset, run.source) if dataset is None else dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    fitted = min(fitted, len(dataset) // 2)
    index = order[: fitted + measured]
    mean, log_var = _posteriors(model, dataset, index)
    options = {"likelihood": run.likelihood, "most_bytes": most_bytes, "seed": seed}
    compressed = compress(model, mean[:fitted], log_var[:fitted], **options)
    held_out = _samples(mean[fitted:], log_var[fitted:], seed + 1)
    about = {
        "run": {name: record[name] for name in _RUN},
        "sliders": _sliders(mean, record),
        "starts": _starts(model, dataset),
        "error": _error(compressed, model, dataset, index[fitted:], held_out),
    }
    return replace(compressed, about=about)


def _sliders(mean: Tensor, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the active latents in the order of a portrait: by the factor of most information, then by its amount."""
    information = np.array(record["mutual_information"])
    best, nats = information.argmax(0), information.max(0)
    low, high = (ends.tolist() for ends in torch.aminmax(mean, dim=0))
    shown = sorted(active_units(mean).nonzero().flatten().tolist(), key=lambda k: (best[k], -nats[k], k))
    names = record["factors"]
    return [
        {"latent": k, "factor": names[best[k]], "nats": float(nats[k]), "low": low[k], "high": high[k]} for k in shown
    ]


def _starts(model: models.VAE, dataset: FactorDataset) -> list[dict[str, Any]]:
    """Return the images in the middle of all factors but the split of the data set's view, as in a portrait."""
    split = latents.VIEWS.get(dataset.name, latents.View()).split
    middle = {
        name: size // 2 for name, size in zip(dataset.factor_names, dataset.factor_sizes, strict=True) if name != split
    }
    index = dataset.index(**middle)
    names = [""] if split is None else [str(value) for value in dataset.values[split]]
    mean, _ = _posteriors(model, dataset, index)
    images = (dataset.images(index) * 255).round().to(torch.uint8).numpy()
    return [
        {"name": name, "z": z.tolist(), "image": base64.b64encode(image.tobytes()).decode()}
        for name, z, image in zip(names, mean, images, strict=True)
    ]


def to_script(path: str | os.PathLike[str]) -> str:
    """Return the script that brings a decoder to a page, which can load no other kind of file from disk."""
    path = Path(path)
    CompressedDecoder.load(path)
    text = base64.b64encode(path.read_bytes()).decode()
    return f"Explorers.latents.receive({json.dumps(path.stem)}, {json.dumps(text)});\n"


def representatives(
    spec_path: str | os.PathLike[str], objective_names: Sequence[str] = ("beta-vae", "isa-vae"), beta: float = 1.0
) -> dict[str, Path]:
    """Return the folders of the kept models that represent their objectives in a specification's records (A.5).

    If runs of one objective and beta were trained in several ways, the first in the specification counts.
    """
    spec = Spec.read(spec_path)
    records = sweep(spec, budget=0)
    found = {}
    for name in objective_names:
        rows = list(records.select(objective=name, beta=beta, status="trained"))
        if not rows:
            raise ValueError(f"{spec.record} must have a run of {name} at beta = {beta:g}: {records.command} trains it")
        kind = ("total_steps", "batch_size", "prior", "learn_exponents")
        rows = [row for row in rows if all(row[field] == rows[0][field] for field in kind)]
        row = rows[representative([row["mig"] for row in rows], [row["log_likelihood"] for row in rows])]
        found[name] = spec.work / "models" / row["key"]
        if not (found[name] / "model.safetensors").is_file():
            raise ValueError(f"{found[name]}, the model that represents {name}, was not kept: sweep with --keep-models")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write decoders for pages, as ``python -m edition.explorers.decoders``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m edition.explorers.decoders",
        description="Make the decoders of trained models small enough to run in a page, and measure the difference.",
    )
    models_help = (
        "folder of a kept model, or a specification for the representatives of beta-vae and isa-vae at beta = 1"
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", type=Path, help=models_help)
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("runs/decoders"), help="(runs/decoders)")
    arguments = parser.parse_args(argv)
    try:
        folders = []
        for path in arguments.models:
            folders += representatives(path).values() if path.suffix == ".yaml" else [path]
        for folder in folders:
            exhibit = export(folder)
            path = exhibit.save(arguments.output / f"{exhibit.about['run']['key']}.bin")
            error = exhibit.about["error"]
            print(f"{path}: {path.stat().st_size:,} bytes, ranks {[layer.sizes[1] for layer in exhibit.layers[1:]]}")
            print(
                f"  over {error['images']:,} other images: mean absolute error of a pixel {error['pixel']:.5f}, "
                f"log-likelihood {error['log_likelihood']:.3f} in place of {error['original_log_likelihood']:.3f} nats"
            )
    except (ValueError, KeyError, OSError) as error:
        print(f"edition.explorers.decoders: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
