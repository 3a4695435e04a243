"""FactorDataset: the grid of factors, images by index, seeded epochs, bad input."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isa.data import DataError, Factor, FactorDataset, ImageIndexError, Provenance, UnknownFactorError, load

PROVENANCE = Provenance("a test", "MIT", "nobody", "numbers", procedural=True)
SIZES = (3, 4, 5)
FACTORS = [Factor(name, np.linspace(0, 1, size), "m") for name, size in zip("abc", SIZES, strict=True)]
IMAGES = np.random.default_rng(0).integers(0, 256, (*SIZES, 6, 8), dtype=np.uint8)
BITS = np.random.default_rng(1).integers(0, 2, (60, 1, 6, 8), dtype=np.uint8)


def grey() -> FactorDataset:
    return FactorDataset.from_array("grey", "Grey", FACTORS, IMAGES, PROVENANCE)


def packed() -> FactorDataset:
    storage = torch.from_numpy(np.packbits(BITS.reshape(60, -1), axis=1))
    return FactorDataset("bits", "Bits", FACTORS, storage, PROVENANCE, image_shape=(1, 6, 8), packed=True)


def test_attributes():
    dataset = grey()
    assert dataset.factor_names == ("a", "b", "c")
    assert dataset.factor_sizes == SIZES
    assert len(dataset) == math.prod(SIZES)
    assert dataset.image_shape == (1, 6, 8)
    assert dataset.units == {"a": "m", "b": "m", "c": "m"}
    assert np.array_equal(dataset.values["b"], np.linspace(0, 1, 4))
    assert dataset.licence == "MIT" and dataset.citation == "nobody" and dataset.procedural
    assert "3 a x 4 b x 5 c = 60" in repr(dataset)
    with pytest.raises(ValueError, match="read-only"):
        dataset.values["a"][0] = 7


def test_images_are_exact_for_grey_packed_and_colour():
    index = [59, 0, 17, 17]
    images = grey().images(index)
    assert images.dtype == torch.float32 and images.shape == (4, 1, 6, 8)
    assert torch.equal(images[:, 0], torch.from_numpy(IMAGES.reshape(60, 6, 8)[index]).float() / 255)
    assert torch.equal(packed().images(index), torch.from_numpy(BITS[index]).float())
    colour = np.random.default_rng(2).integers(0, 256, (*SIZES, 6, 8, 3), dtype=np.uint8)
    images = FactorDataset.from_array("rgb", "RGB", FACTORS, colour, PROVENANCE).images(np.array(index))
    expected = torch.from_numpy(colour.reshape(60, 6, 8, 3)[index]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(images, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_images_in_other_types(dtype):
    index = torch.arange(60)
    assert torch.equal(packed().images(index, dtype=dtype), torch.from_numpy(BITS).to(dtype))
    assert torch.allclose(grey().images(index, dtype=dtype).double(), grey().images(index).double(), atol=4e-3)


def test_the_accelerators_way_of_unpacking_gives_the_same_numbers():
    dataset = packed()
    for dtype in (torch.float32, torch.bfloat16):
        unpacked = dataset._unpack(dataset.storage[[5, 59, 0]], dtype).view(3, 1, 6, 8)
        assert torch.equal(unpacked, dataset.images([5, 59, 0], dtype=dtype))
        images = grey().images([5, 59, 0], dtype=dtype)
        assert torch.equal(grey()._grey(grey().storage[[5, 59, 0]], dtype).view_as(images), images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("make", [grey, packed])
def test_images_on_an_accelerator(make):
    here, there = make(), make().to("cuda")
    index = next(there.batches(32, seed=3))
    assert index.device.type == "cuda"
    images = there.images(index, check=False)
    assert images.device.type == "cuda"
    assert torch.equal(images.cpu(), here.images(index.cpu()))
    assert there.checksum == here.checksum


def test_a_batch_is_the_callers_own():
    dataset = grey()
    first = dataset.images([0, 1])
    copy = first.clone()
    dataset.images([2, 3])
    assert torch.equal(first, copy)
    first.zero_()
    assert torch.equal(dataset.images([0, 1]), copy)


def test_empty_index():
    for dataset in (grey(), packed()):
        assert dataset.images([]).shape == (0, 1, 6, 8)
    assert grey().factors([]).shape == (0, 3)


@given(st.data())
def test_index_selects_the_images_whose_factors_are_fixed(data):
    dataset = grey()
    fixed = {
        name: data.draw(st.one_of(st.integers(0, size - 1), st.lists(st.integers(0, size - 1), min_size=1, max_size=4)))
        for name, size in zip(dataset.factor_names, SIZES, strict=True)
        if data.draw(st.booleans())
    }
    flat = dataset.index(**fixed).numpy()
    chosen = [np.atleast_1d(fixed.get(name, np.arange(size))) for name, size in zip("abc", SIZES, strict=True)]
    assert np.array_equal(flat.reshape([len(c) for c in chosen]), np.arange(60).reshape(SIZES)[np.ix_(*chosen)])


@given(st.lists(st.integers(0, 59), min_size=1, max_size=20))
def test_factors_invert_the_flat_index(index):
    assert np.array_equal(grey().factors(index).numpy().T, np.unravel_index(index, SIZES))


def test_traversal_runs_along_one_factor():
    dataset = grey()
    assert dataset.factors(dataset.traversal("c")).tolist() == [[1, 2, k] for k in range(5)]
    assert dataset.factors(dataset.traversal("c", 3, a=0)).tolist() == [[0, 2, 0], [0, 2, 2], [0, 2, 4]]
    assert len(dataset.traversal("a", 9)) == 3
    with pytest.raises(UnknownFactorError, match="'z'"):
        dataset.traversal("z")
    with pytest.raises(ValueError, match="steps"):
        dataset.traversal("a", 0)


@pytest.mark.parametrize(
    ("index", "kind", "text"),
    [
        (60, ImageIndexError, "between 0 and 59, got 60"),
        ([0, -1], ImageIndexError, "got -1"),
        (torch.tensor([3, 61]), ImageIndexError, "got 61"),
        (np.array([2**63 + 5], np.uint64), ImageIndexError, "between 0 and 59"),
        (1.5, TypeError, "1.5"),
        ("3", TypeError, "'3'"),
        (None, TypeError, "None"),
        (torch.tensor([0.0]), TypeError, "float32"),
        (torch.zeros(60, dtype=torch.bool), TypeError, "bool"),
        (np.zeros(60, bool), TypeError, "bool"),
        ([[0, 1]], ValueError, "one-dimensional"),
    ],
)
def test_bad_image_indices(index, kind, text):
    with pytest.raises(kind, match=text):
        grey().images(index)
    with pytest.raises(kind, match=text):
        grey().factors(index)


def test_bad_factors():
    with pytest.raises(UnknownFactorError, match=r"'d' is no factor of grey: its factors are a, b, c"):
        grey().index(d=0)
    with pytest.raises(ImageIndexError, match=r"factor 'b' must be between 0 and 3, got 4"):
        grey().index(b=4)
    with pytest.raises(TypeError, match="factor 'b'"):
        grey().index(b=0.5)
    assert issubclass(UnknownFactorError, KeyError) and issubclass(UnknownFactorError, ValueError)
    assert issubclass(ImageIndexError, IndexError) and issubclass(ImageIndexError, ValueError)
    assert issubclass(DataError, ValueError)


def test_bad_construction():
    storage = torch.zeros(60, 1, 6, 8, dtype=torch.uint8)
    arguments = ("x", "X", FACTORS)
    with pytest.raises(ValueError, match="storage must be uint8 of shape"):
        FactorDataset(*arguments, storage[:59], PROVENANCE, image_shape=(1, 6, 8))
    with pytest.raises(ValueError, match="float32"):
        FactorDataset(*arguments, storage.float(), PROVENANCE, image_shape=(1, 6, 8))
    with pytest.raises(ValueError, match="multiple of 8"):
        FactorDataset(*arguments, torch.zeros(60, 1, dtype=torch.uint8), PROVENANCE, image_shape=(1, 3, 3), packed=True)
    with pytest.raises(ValueError, match="different names"):
        FactorDataset("x", "X", [FACTORS[0], FACTORS[0]], storage[:9], PROVENANCE, image_shape=(1, 6, 8))
    with pytest.raises(ValueError, match="images must be uint8"):
        FactorDataset.from_array("x", "X", FACTORS, IMAGES[:2], PROVENANCE)
    with pytest.raises(ValueError, match="one-dimensional"):
        Factor("x", np.zeros((2, 2)))
    with pytest.raises(TypeError, match="floating-point"):
        grey().images(0, dtype=torch.uint8)


def test_checksum_is_of_the_bytes_in_memory():
    dataset = grey()
    assert dataset.checksum == hashlib.sha256(IMAGES.tobytes()).hexdigest()
    assert dataset.to("cpu").checksum == dataset.checksum
    changed = IMAGES.copy()
    changed[2, 3, 4, 5, 7] ^= 1
    assert FactorDataset.from_array("grey", "Grey", FACTORS, changed, PROVENANCE).checksum != dataset.checksum


@given(st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_is_a_permutation_of_seed_and_number(seed, number):
    dataset = grey()
    order = dataset.epoch(number, seed=seed)
    assert torch.equal(order.sort().values, torch.arange(60))
    torch.manual_seed(number)
    assert torch.equal(order, dataset.epoch(number, seed=seed))
    assert not torch.equal(order, dataset.epoch(number + 1, seed=seed))
    assert not torch.equal(order, dataset.epoch(number, seed=seed + 1))


@given(st.integers(1, 60), st.booleans(), st.integers(0, 30))
def test_batches_cover_each_epoch_and_resume(batch_size, drop_last, start):
    dataset = grey()
    batches = list(dataset.batches(batch_size, seed=5, epochs=2, drop_last=drop_last))
    per_epoch = 60 // batch_size if drop_last else -(-60 // batch_size)
    assert len(batches) == 2 * per_epoch
    for number in range(2):
        seen = torch.cat(batches[number * per_epoch : (number + 1) * per_epoch])
        assert torch.equal(seen, dataset.epoch(number, seed=5)[: len(seen)])
        assert len(seen) == (per_epoch * batch_size if drop_last else 60)
    resumed = list(dataset.batches(batch_size, seed=5, epochs=2, start=start, drop_last=drop_last))
    assert len(resumed) == len(batches[start:])
    assert all(torch.equal(a, b) for a, b in zip(resumed, batches[start:], strict=True))


def test_endless_batches():
    batches = grey().batches(50, epochs=None, drop_last=True)
    assert sum(len(next(batches)) for _ in range(7)) == 350


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"batch_size": 0}, ValueError, "batch_size .* got 0"),
        ({"batch_size": 61}, ValueError, "60 images, got 61"),
        ({"batch_size": 2.0}, TypeError, "batch_size"),
        ({"batch_size": 2, "epochs": -1}, ValueError, "epochs"),
        ({"batch_size": 2, "start": -1}, ValueError, "start"),
    ],
)
def test_bad_batches_are_refused_at_the_call(arguments, kind, text):
    with pytest.raises(kind, match=text):
        grey().batches(**arguments)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_bad_seeds(seed):
    with pytest.raises((ValueError, TypeError), match="seed"):
        grey().epoch(0, seed=seed)


def test_unknown_names_and_sources():
    with pytest.raises(ValueError, match=r"name must be one of dsprites, faces3d, cars3d, got 'mnist'"):
        load("mnist")
    with pytest.raises(TypeError, match="source must be a path, got 3"):
        load("dsprites", 3)
