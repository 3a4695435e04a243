"""FactorDataset: the grid of factors, images by index, seeded epochs, a DataLoader, bad input; and the cache."""

import hashlib

import numpy as np
import pytest
import torch
from conftest import cuda
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from isa.data import Factor, FactorDataset, Provenance, SourceMissingError, load
from isa.data.cache import cached_array, directory

PROVENANCE = Provenance("a test", "MIT", "nobody", "numbers", procedural=True)
SIZES = (3, 4, 5)
FACTORS = [Factor(name, np.linspace(0, 1, size), "m") for name, size in zip("abc", SIZES, strict=True)]
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (*SIZES, 1, 6, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (*SIZES, 3, 6, 8), dtype=np.uint8)
BITS = RNG.integers(0, 2, (*SIZES, 1, 6, 8), dtype=np.uint8)


def from_array(images: np.ndarray) -> FactorDataset:
    return FactorDataset.from_array("numbers", "Numbers", FACTORS, images, PROVENANCE)


PACKED = torch.from_numpy(np.packbits(BITS.reshape(60, -1), axis=1))
#: name -> (data set, its images in [0, 1])
DATASETS = {
    "grey, no channels": (from_array(GREY[:, :, :, 0]), GREY / 255),
    "colour, channels first": (from_array(COLOUR), COLOUR / 255),
    "colour, channels last": (from_array(np.moveaxis(COLOUR, 3, 5)), COLOUR / 255),
    "bits": (FactorDataset("b", "Bits", FACTORS, PACKED, PROVENANCE, image_shape=(1, 6, 8), packed=True), BITS),
}
grey = DATASETS["grey, no channels"][0]


@pytest.fixture(params=DATASETS)
def dataset(request) -> tuple[FactorDataset, torch.Tensor]:
    made, images = DATASETS[request.param]
    return made, torch.from_numpy(images.reshape(60, *images.shape[3:]))


def test_attributes():
    assert grey.factor_names == ("a", "b", "c") and grey.factor_sizes == SIZES and len(grey) == 60
    assert grey.image_shape == (1, 6, 8) and grey.storage.nbytes == 60 * 48
    assert grey.units == {"a": "m", "b": "m", "c": "m"} and np.array_equal(grey.values["b"], np.linspace(0, 1, 4))
    assert grey.procedural and "3 a x 4 b x 5 c = 60" in repr(grey)
    with pytest.raises(ValueError, match="read-only"):
        grey.values["a"][0] = 7


def test_images_by_index(dataset):
    tested, expected = dataset
    for index in (17, [59, 0, 17, 17], range(60), np.array([3, 4]), torch.tensor([5, 59]), []):
        assert torch.equal(tested.images(index), expected[np.atleast_1d(index).astype(int)].float())
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.bfloat16, 2e-3), (torch.float16, 3e-4)):
        images = tested.images(range(60), dtype=dtype)
        assert images.dtype == dtype
        torch.testing.assert_close(images.double(), expected.double(), atol=tolerance, rtol=0)


@cuda
def test_images_on_an_accelerator(dataset):
    tested, _ = dataset
    there = tested.to("cuda")
    index = there.epoch(3)
    assert index.device.type == there.images(index).device.type == "cuda"
    for dtype in (torch.float32, torch.bfloat16):
        images = there.images(index, dtype=dtype, check=False)
        assert torch.equal(images.cpu(), tested.images(index.cpu(), dtype=dtype))
    assert there.checksum == tested.checksum


def test_items_and_data_loader(dataset):
    tested, expected = dataset
    assert torch.equal(tested[-1], expected[-1].float()) and torch.equal(tested[5:20:3], expected[5:20:3].float())
    with pytest.raises(IndexError):
        tested[60]
    loader = DataLoader(tested, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0))
    seen = torch.cat(list(loader)).flatten(1)
    assert sorted(seen.tolist()) == sorted(expected.float().flatten(1).tolist())


def test_default_device_does_not_matter():
    with torch.device("meta"):
        order = grey.epoch(2, seed=1)
        assert order.device.type == "cpu" and torch.equal(order, grey.epoch(2, seed=1))
        assert grey.index(a=1).tolist() == list(range(20, 40))
        assert grey.factors([59]).tolist() == [[2, 3, 4]]
        assert np.array_equal(grey.images(order[:2]).numpy(), grey.images(order[:2].tolist()).numpy())
        assert grey.restrict(b=0, c=[1, 2])[5].numpy().shape == (1, 6, 8)


@given(st.data())
def test_index_selects_by_factor(data):
    fixed = {
        name: data.draw(st.one_of(st.integers(0, size - 1), st.lists(st.integers(0, size - 1), min_size=1, max_size=4)))
        for name, size in zip(grey.factor_names, SIZES, strict=True)
        if data.draw(st.booleans())
    }
    chosen = [np.atleast_1d(fixed.get(name, np.arange(size))) for name, size in zip("abc", SIZES, strict=True)]
    expected = np.arange(60).reshape(SIZES)[np.ix_(*chosen)]
    assert np.array_equal(grey.index(**fixed).numpy(), expected.ravel())
    part = grey.restrict(**fixed)
    assert part.factor_sizes == expected.shape
    assert torch.equal(part.storage, grey.storage[expected.ravel()])
    assert all(np.array_equal(part.values[n], grey.values[n][c]) for n, c in zip("abc", chosen, strict=True))


def test_factors_and_traversal():
    assert np.array_equal(grey.factors(range(60)).numpy().T, np.unravel_index(range(60), SIZES))
    assert grey.factors(grey.traversal("c")).tolist() == [[1, 2, k] for k in range(5)]
    assert grey.factors(grey.traversal("c", 3, a=0)).tolist() == [[0, 2, 0], [0, 2, 2], [0, 2, 4]]
    assert len(grey.traversal("a", 9)) == 3


@given(st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_is_a_permutation_by_seed_and_number(seed, number):
    order = grey.epoch(number, seed=seed)
    assert torch.equal(order.sort().values, torch.arange(60))
    torch.manual_seed(number)
    assert torch.equal(order, grey.epoch(number, seed=seed))
    assert not torch.equal(order, grey.epoch(number + 1, seed=seed))
    assert not torch.equal(order, grey.epoch(number, seed=seed + 1))


def test_epochs_and_checksum_are_those_of_the_records():
    assert grey.epoch(2, seed=7)[:8].tolist() == [57, 10, 27, 40, 29, 21, 36, 9]
    assert grey.epoch(0, seed=2**40)[:4].tolist() == [21, 57, 53, 42]
    assert grey.checksum == hashlib.sha256(GREY.tobytes()).hexdigest() == grey.to("cpu").checksum


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: grey.images(60), IndexError, "between 0 and 59, got 60"),
        (lambda: grey.factors(torch.tensor([3, 61])), IndexError, "got 3 to 61"),
        (lambda: grey.index(d=0), ValueError, r"numbers has no factor 'd': its factors are a, b, c"),
        (lambda: grey.index(b=4), IndexError, "b must be between 0 and 3, got 4"),
        (lambda: grey.restrict(b=[0, -1]), IndexError, "b must be between 0 and 3, got -1"),
        (lambda: from_array(GREY[:2]), ValueError, r"storage must be uint8 of shape \(60, 1, 6, 8\), got .*\(40, 1, 6"),
        (lambda: from_array(GREY / 255), ValueError, "got torch.float64"),
        (lambda: load("mnist"), ValueError, "name must be one of dsprites, faces3d, cars3d, got 'mnist'"),
        (lambda: load("dsprites", "~nobody-at-all/x"), SourceMissingError, "x does not exist"),
    ],
)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def never() -> np.ndarray:
    raise AssertionError("made again although it is in the cache")


def kept(folder, build=lambda: GREY, key="k") -> np.ndarray:
    return cached_array("x", key, build, shape=GREY.shape, cache_dir=folder)


def test_cache_directory_by_argument_then_environment_then_platform(tmp_path, monkeypatch):
    monkeypatch.setenv("ISA_CACHE_DIR", str(tmp_path / "environment"))
    assert directory(tmp_path / "argument") == tmp_path / "argument"
    assert directory() == tmp_path / "environment"
    monkeypatch.delenv("ISA_CACHE_DIR")
    assert "isa" in directory().parts[-1].lower()


@pytest.mark.parametrize("content", [None, GREY[:2], np.array([None]), b"", bytes(range(256))], ids=type)
def test_missing_or_damaged_cache_is_written(tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "x-k.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "x-k.npy", content)
    assert np.array_equal(kept(tmp_path), GREY) and np.array_equal(kept(tmp_path, never), GREY)
    assert np.array_equal(kept(tmp_path, lambda: GREY + 1, key="other"), GREY + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-k.npy", "x-other.npy"]
