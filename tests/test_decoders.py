"""Compressed decoders: distance from the original, files, measured error, and the command that writes them."""

import base64
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import safetensors.numpy
import tiny_sweep
import torch
from conftest import ROOT
from tiny_runs import tiny, train
from torch import nn

from edition.explorers import decoders
from edition.explorers.decoders import CompressedDecoder, compress, export, low_rank, to_script
from isa import latents, models, objectives
from isa.results import Result
from isa.sweep import Spec, sweep


@pytest.fixture
def model() -> models.VAE:
    """The perceptrons of A.4, a thirtieth as wide, with a decoder that is far from linear."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(4096, 6))
        linear = [nn.Linear(n, m) for n, m in pairwise([3, 40, 40, 4096])]
    for layer in linear:
        layer.weight.data *= 3
    decoder = nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2])
    return models.VAE(models.Encoder(encoder, 3), models.Decoder(decoder, 1)).eval()


POSTERIORS = torch.randn(600, 3, generator=torch.Generator().manual_seed(1)), torch.full((600, 3), -3.0)
Z = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def trained() -> Result:
    return train(tiny(steps=60), evaluation=True)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> CompressedDecoder:
    folder = trained.save(tmp_path_factory.mktemp("models") / trained.run.key)
    return export(folder, latents.portrait(trained, tiny_sweep.DATASET), tiny_sweep.DATASET)


@torch.no_grad()
def test_more_bytes_are_closer(model):
    budgets = 60_000, 90_000, 200_000
    made = [compress(model, *POSTERIORS, most_bytes=budget) for budget in budgets]
    errors = [(one.decode(Z).sigmoid() - model.decode(Z).sigmoid()).abs().mean() for one in made]
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.2 * errors[2]
    assert errors[2] < 0.01  # from rounding to 8 bits
    sizes = [sum(tensor.nbytes for tensor in one.tensors.values()) for one in made]
    assert all(size <= budget for size, budget in zip(sizes, budgets, strict=True)) and sizes[0] > 0.9 * budgets[0]
    with pytest.raises(ValueError, match="must allow every layer"):
        compress(model, *POSTERIORS, most_bytes=35_000)


def test_low_rank_is_least_squares_except_for_rounding():
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(3000, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 1
    y = h @ torch.randn(12, 30, generator=generator) + 0.1 * torch.randn(3000, 30, generator=generator) - 2
    weight = torch.rand(30, generator=generator, dtype=torch.float64) + 0.1
    x, target = (one.double() - one.double().mean(0) for one in (h, y))
    fitted = x @ torch.linalg.lstsq(x, target).solution
    spectrum = torch.linalg.svdvals(fitted * weight.sqrt()) ** 2 / len(h)
    for rank in (1, 4, 9):
        layer = {name: tensor.double() for name, tensor in low_rank(h, y, weight, rank).items()}
        z = h.double() @ layer["down"].T * layer["down.scale"] @ layer["up"].T * layer["up.scale"] + layer["bias"]
        residual = ((y - z).square().mean(0) * weight).sum()
        smallest = ((target - fitted).square().mean(0) * weight).sum() + spectrum[rank:].sum()
        assert smallest * (1 - 1e-6) <= residual <= smallest + 2e-3 * spectrum.sum()


@torch.no_grad()
def test_saturated_outputs_weigh_little(model):
    model.decoder.net[-1].bias[:2048] = -30  # pixels that are always black
    logits = compress(model, *POSTERIORS, most_bytes=60_000).decode(Z)
    black, others = (logits - model.decode(Z)).flatten(1).abs().mean(0).split(2048)
    assert others.mean() < black.mean()


def test_file_is_as_documented(exported, tmp_path):
    path = exported.save(tmp_path / "new" / "a-key.safetensors")
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "np") as file:
        about = json.loads(file.metadata()["decoder"])
    assert about == {"image": [1, 64, 64], "likelihood": "bernoulli", "error": exported.error}
    z = np.random.default_rng(0).normal(size=(5, 3))
    h = z @ tensors["0.weight"].T + tensors["0.bias"]
    for layer in range(1, 1 + len(exported.ranks)):
        h = np.tanh(h)
        for name in (f"{layer}.down", f"{layer}.up"):
            assert tensors[name].dtype == np.int8
            h = h @ (tensors[f"{name}.scale"][:, None] * tensors[name].astype(float)).T
        h = h + tensors[f"{layer}.bias"]
    decoded = exported.decode(torch.from_numpy(z))
    assert decoded.shape == (5, 1, 64, 64)
    np.testing.assert_allclose(decoded.flatten(1), h, rtol=1e-4, atol=1e-4)

    again = CompressedDecoder.load(path)
    assert again.error == exported.error and again.save(tmp_path / "again").read_bytes() == path.read_bytes()
    script = to_script(path)
    assert script.startswith('Explorers.latents.receive("a-key", "') and script.endswith('");\n')
    assert base64.b64decode(script.split('"')[3]) == path.read_bytes()


@torch.no_grad()
def test_error_is_measured_on_other_images(exported, trained):
    dataset, model = tiny_sweep.DATASET, trained.model
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    x = dataset.images(order[len(dataset) // 2 :])
    z = model.encode(x).sample(generator=torch.Generator().manual_seed(1))
    ours, theirs = exported.decode(z), model.decode(z)
    expected = {
        "images": 35,
        "pixel": float((ours.sigmoid() - theirs.sigmoid()).abs().mean()),
        "log_likelihood": float(objectives.bernoulli_log_likelihood(ours, x).mean()),
        "original_log_likelihood": float(objectives.bernoulli_log_likelihood(theirs, x).mean()),
    }
    assert exported.error == pytest.approx(expected, rel=1e-4)
    assert 0 < exported.error["pixel"] < 0.01


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decoders.data, "load", lambda name, source=None: tiny_sweep.DATASET)
    path = tiny_sweep.write_spec(tmp_path)
    arguments = [str(path), "--output", str(tmp_path / "out")]
    assert decoders.main(arguments) == 1
    assert "none of 0 representatives is in" in capsys.readouterr().err
    sweep(Spec.read(path), device="cpu", keep_models=True)
    assert decoders.main(arguments) == 0
    keys = decoders.representatives(Spec.read(path))
    kinds = [key.rpartition("-seed")[0] for key in keys]
    assert kinds == ["cars3d-beta-vae-1", "cars3d-beta-vae-4", "cars3d-isa-vae-1"]
    shutil.rmtree(Spec.read(path).work / "models" / keys[0])
    capsys.readouterr()
    shutil.rmtree(tmp_path / "out")
    assert decoders.main(arguments) == 0 and "1 other representatives were not kept" in capsys.readouterr().out
    assert {file.stem for file in (tmp_path / "out").iterdir()} == set(keys[1:])


def test_committed_decoders_and_portraits_are_small():
    root = ROOT / "runs"
    portraits = {path.stem: latents.Portrait.load(path) for path in (root / "portraits").iterdir()}
    decoded = {path.stem: CompressedDecoder.load(path) for path in (root / "decoders").iterdir()}
    assert decoded and all(portrait.about["key"] == key for key, portrait in portraits.items())
    for folder, size in (("portraits", 500_000), ("decoders", 2_100_000)):
        assert max(path.stat().st_size for path in (root / folder).iterdir()) < size
    for key, decoder in decoded.items():
        starts, portrait = decoder.tensors["starts"], portraits[key]
        assert starts.shape == (len(portrait.bases), len(portrait.noise))
        means = decoder.decode(starts).sigmoid()
        assert np.abs(255 * means.numpy() - portrait.reconstructions).mean() < 2
