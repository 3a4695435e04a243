"""Compressed decoders: how close they stay, what their files hold and refuse, and what is said of them."""

from __future__ import annotations

import base64
import json
import struct
from itertools import pairwise

import numpy as np
import pytest
import tiny_sweep
import torch
from torch import nn

from edition.explorers import decoders
from edition.explorers.decoders import CompressedDecoder, compress, export, to_script
from isa import engine, latents, models, objectives
from isa.results import Result
from isa.run import Run
from isa.sweep import Spec, sweep

TINY = {"dataset": "cars3d", "model": "small", "latent_dim": 3, "batch_size": 16, "steps": 60, "precision": "fp32"}


def vae(width: int = 40, latent_dim: int = 3, channels: int = 1, seed: int = 0) -> models.VAE:
    """The perceptrons of A.4, a thirtieth as wide, with a decoder that is far from linear."""
    pixels = channels * models.IMAGE_SIZE**2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2 * latent_dim))
        sizes = [latent_dim, width, width, pixels]
        linear = [nn.Linear(n, m) for n, m in pairwise(sizes)]
        for one in linear:
            one.weight.data *= 3
        decoder = nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2])
    return models.VAE(models.Encoder(encoder, latent_dim), models.Decoder(decoder, channels)).eval()


def posteriors(n: int = 600, latent_dim: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, latent_dim, generator=generator), torch.full((n, latent_dim), -3.0)


def pixel_error(compressed: CompressedDecoder, model: models.VAE) -> float:
    z = torch.randn(200, model.latent_dim, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return float((compressed.pixels(z) - model.decode(z).sigmoid()).abs().mean())


def weights(compressed: CompressedDecoder) -> int:
    """Bytes behind the header."""
    held = compressed.to_bytes()
    return len(held) - 12 - struct.unpack("<I", held[8:12])[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Result, object]:
    """A model that a sweep would have kept, and its folder."""
    result = engine.train(Run(**TINY), dataset=tiny_sweep.DATASET, device="cpu", progress=False)
    return result, result.save(tmp_path_factory.mktemp("models") / result.run.key)


@pytest.fixture(scope="module")
def exhibit(trained) -> CompressedDecoder:
    return export(trained[1], tiny_sweep.DATASET)


# --- compression ------------------------------------------------------------------------------------------------------


def test_more_bytes_are_closer():
    model, budgets = vae(), (60_000, 90_000, 200_000)
    made = [compress(model, *posteriors(), most_bytes=budget) for budget in budgets]
    errors = [pixel_error(one, model) for one in made]
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.2 * errors[2]
    assert errors[2] < 0.01  # what 8 bits leave
    for one, budget in zip(made, budgets, strict=True):
        assert weights(one) <= budget
        assert one.latents == 3 and one.image == (1, 64, 64)
    assert weights(made[0]) > 0.9 * budgets[0], "room was left"


def test_regression_matches_least_squares():
    """The residual of a layer is what the least squares of its rank leave, but for rounding."""
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(3000, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 1
    y = h @ torch.randn(12, 30, generator=generator) + 0.1 * torch.randn(3000, 30, generator=generator) - 2
    weight = torch.rand(30, generator=generator, dtype=torch.float64) + 0.1
    found = decoders.Regression(h, y, weight)
    x, target = (one.double() - one.double().mean(0) for one in (h, y))
    fitted = x @ torch.linalg.lstsq(x, target).solution
    spectrum = torch.linalg.svdvals(fitted * weight.sqrt()) ** 2 / len(h)
    torch.testing.assert_close(found.power[:12], spectrum[:12], rtol=1e-4, atol=1e-6)
    for rank in (1, 4, 9):
        layer = found.layer(rank)
        z = h.double()
        for scale, values in layer.matrices:
            z = z @ torch.from_numpy(scale[:, None].astype(float) * values).T
        left = ((y - z - torch.from_numpy(layer.bias)).square().mean(0) * weight).sum()
        least = ((target - fitted).square().mean(0) * weight).sum() + spectrum[rank:].sum()
        assert least * (1 - 1e-6) <= left <= least + 2e-3 * spectrum.sum()


def test_saturated_outputs_weigh_little():
    model = vae()
    with torch.no_grad():
        model.decoder.net[-1].bias[:2048] = -30  # pixels that are never lit
    compressed = compress(model, *posteriors(), most_bytes=60_000)
    z = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        far = (compressed.decode(z) - model.decode(z)).flatten(1).abs().mean(0)
    assert far[2048:].mean() < far[:2048].mean()


def test_other_decoders_are_refused():
    with pytest.raises(ValueError, match="linear layers with tanh"):
        compress(models.build("conv", 3), *posteriors())


# --- files ------------------------------------------------------------------------------------------------------------


def read_as_documented(held: bytes) -> tuple[dict, list]:
    assert held[:8] == b"ISADEC1\n"
    (length,) = struct.unpack("<I", held[8:12])
    header, place = json.loads(held[12 : 12 + length]), 12 + length
    assert length % 4 == 0
    layers = []
    for layer in header["layers"]:
        matrices = []
        for columns, rows in pairwise(layer["sizes"]):
            size = rows * columns
            if layer["bits"] == 32:
                matrices.append(np.frombuffer(held, "<f4", size, place).reshape(rows, columns))
                place += 4 * size
                continue
            scale = np.frombuffer(held, "<f4", rows, place)
            values = np.frombuffer(held, "i1", size, place + 4 * rows).reshape(rows, columns)
            matrices.append(scale[:, None] * values.astype(float))
            place += 4 * rows + size + (-size % 4)
        bias = np.frombuffer(held, "<f4", layer["sizes"][-1], place)
        place += bias.nbytes
        layers.append((matrices, bias))
    assert place == len(held)
    return header, layers


def test_file_format(exhibit):
    header, layers = read_as_documented(exhibit.to_bytes())
    assert header["about"] == exhibit.about and header["likelihood"] == "bernoulli"
    z = np.random.default_rng(0).normal(size=(5, 3))
    h = z
    for number, (matrices, bias) in enumerate(layers):
        h = np.tanh(h) if number else h
        for matrix in matrices:
            h = h @ matrix.T
        h = h + bias
    decoded = exhibit.decode(torch.from_numpy(z))
    assert decoded.shape == (5, 1, 64, 64)
    np.testing.assert_allclose(decoded.flatten(1), h, rtol=1e-4, atol=1e-4)


def test_save_and_load(exhibit, tmp_path):
    path = exhibit.save(tmp_path / "new" / "one.bin")
    again = CompressedDecoder.load(path)
    z = torch.randn(4, 3)
    assert torch.equal(again.decode(z), exhibit.decode(z))
    assert again.about == exhibit.about and again.to_bytes() == exhibit.to_bytes() == path.read_bytes()
    assert [one.name for one in path.parent.iterdir()] == ["one.bin"]


def test_script_carries_the_file(exhibit, tmp_path):
    path = exhibit.save(tmp_path / "a-key.bin")
    script = to_script(path)
    assert script.startswith('Explorers.latents.receive("a-key", "') and script.endswith('");\n')
    assert base64.b64decode(script.split('"')[3]) == path.read_bytes()


BROKEN = {
    "empty": lambda contents: b"",
    "another format": lambda contents: b"ISADEC2\n" + contents[8:],
    "no length": lambda contents: contents[:10],
    "truncated header": lambda contents: contents[:100],
    "no header": lambda contents: contents[:8] + struct.pack("<I", 4) + b"[]  ",
    "truncated weights": lambda contents: contents[:-1],
    "longer": lambda contents: contents + bytes(4),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(exhibit, tmp_path, case):
    path = tmp_path / "one.bin"
    path.write_bytes(BROKEN[case](exhibit.to_bytes()))
    for read in (CompressedDecoder.load, to_script):
        with pytest.raises(ValueError, match=r"one\.bin is not a decoder: "):
            read(path)


# --- exports ----------------------------------------------------------------------------------------------------------


def test_error_is_measured_on_other_images(exhibit, trained):
    """Over the images that the fit has not seen, by the public functions alone."""
    result, _ = trained
    dataset, error = tiny_sweep.DATASET, exhibit.about["error"]
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    index = order[len(dataset) // 2 :]
    assert error["images"] == len(index) == 35
    x = dataset.images(index)
    with torch.no_grad():
        posterior = result.model.encode(x)
        z = posterior.sample(generator=torch.Generator().manual_seed(1))
        ours, theirs = exhibit.decode(z), result.model.decode(z)
    assert error["pixel"] == pytest.approx(float((ours.sigmoid() - theirs.sigmoid()).abs().mean()), rel=1e-4)
    for name, decoded in (("log_likelihood", ours), ("original_log_likelihood", theirs)):
        expected = float(objectives.bernoulli_log_likelihood(decoded, x).mean())
        assert error[name] == pytest.approx(expected, rel=1e-5)
    assert 0 < error["pixel"] < 0.01


def test_sliders_and_starts_match_the_portrait(exhibit, trained):
    result, _ = trained
    picture = latents.portrait(result, tiny_sweep.DATASET)
    sliders = exhibit.about["sliders"]
    assert [one["latent"] for one in sliders] == picture.shown.tolist() and sliders
    for one, values in zip(sliders, picture.values, strict=True):
        factor, nats = picture.informative[one["latent"]]
        assert one["factor"] == factor and one["nats"] == pytest.approx(nats, rel=1e-5)
        assert [one["low"], one["high"]] == pytest.approx([values[0], values[-1]], rel=1e-5)
    (start,) = exhibit.about["starts"]
    assert base64.b64decode(start["image"]) == picture.originals[0].tobytes()
    rows, images = exhibit.traversals("", 8)
    assert len(rows) == len(sliders) and images.dtype == np.uint8
    far = np.abs(images.astype(int) - picture.traversals[:, 0]).mean() / 255
    assert far < 0.01


def test_run_is_that_of_the_record(exhibit, trained):
    result, _ = trained
    run = exhibit.about["run"]
    assert run["hash"] == result.run.hash and run["reduced"] is True
    assert run["mig"] == result.record["mig"] and run["log_likelihood"] == result.record["log_likelihood"]


def test_unmeasured_models_are_refused(trained, tmp_path):
    _, folder = trained
    record = json.loads((folder / "record.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for change in ({"mig": None}, {"hash": "0" * 16}):
        (tmp_path / "record.json").write_text(json.dumps(record | change))
        with pytest.raises(ValueError, match="the run must have been measured"):
            export(tmp_path, tiny_sweep.DATASET)


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decoders.data, "load", lambda name, source=None: tiny_sweep.DATASET)
    path = tiny_sweep.write_spec(tmp_path)
    arguments = [str(path), "--output", str(tmp_path / "out")]
    assert decoders.main(arguments) == 1
    assert "must have a run of beta-vae at beta = 1" in capsys.readouterr().err
    sweep(Spec.read(path), device="cpu", progress=False, keep_models=True)
    chosen = decoders.representatives(path)
    assert list(chosen) == ["beta-vae", "isa-vae"]
    assert decoders.main(arguments) == 0
    written = sorted((tmp_path / "out").iterdir())
    assert [one.stem for one in written] == sorted(folder.name for folder in chosen.values())
    shown = capsys.readouterr().out
    assert all(f"{one.stat().st_size:,} bytes" in shown for one in written)

    before = written[0].read_bytes()
    assert decoders.main([str(Spec.read(path).work / "models" / written[0].stem), *arguments[1:]]) == 0
    assert written[0].read_bytes() == before
    (chosen["isa-vae"] / "model.safetensors").unlink()
    assert decoders.main(arguments) == 1
    assert "was not kept" in capsys.readouterr().err
