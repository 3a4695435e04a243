"""The software renderer, the procedural heads, and the reader of the published renders."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edition.parts import part
from isa.data import _head, _render, faces3d
from isa.data.base import restrict_factors

SIDE = 32
AVERAGE = np.zeros((1, len(_head.COEFFICIENTS)))
GRID = (np.linspace(-1.6, 1.6, 41),) * 3


def ball(x, y, z, centre=(0.0, 0.0, 0.0), radius=1.0):
    return np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) - radius


@pytest.mark.parametrize("coarse", [1, 7])
def test_polygonised_ball_is_a_closed_outward_sphere(coarse):
    mesh = _render.polygonise(lambda x, y, z: ball(x, y, z, (0.1, -0.2, 0.05)), GRID, coarse=coarse)
    arms = mesh.vertices - np.float32([0.1, -0.2, 0.05])
    # the gradient's stencil reaches a quarter of the spacing, 0.02: the surface is off by its curvature times 0.02^2
    np.testing.assert_allclose(np.sqrt((arms**2).sum(1)), 1, atol=5e-4)
    np.testing.assert_allclose(mesh.normals, arms, atol=0.01)
    a, b, c = (arms[mesh.triangles[:, k]].astype(np.float64) for k in range(3))
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6
    area = np.sqrt((np.cross(b - a, c - a) ** 2).sum(1)).sum() / 2
    assert volume == pytest.approx(4 / 3 * np.pi, rel=0.01)
    assert area == pytest.approx(4 * np.pi, rel=0.01)
    edges = np.sort(np.concatenate([mesh.triangles[:, [0, 1]], mesh.triangles[:, [1, 2]], mesh.triangles[:, [2, 0]]]))
    _, uses = np.unique(edges, axis=0, return_counts=True)
    assert (uses == 2).all()
    assert len(mesh.vertices) - len(uses) + len(mesh.triangles) == 2


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_rasteriser_matches_brute_force(seed):
    rng = np.random.default_rng(seed)
    size, n = 9, 7
    x, y = rng.uniform(-2, size + 2, (2, 3 * n)).astype(np.float32)
    depth = rng.uniform(1, 5, 3 * n).astype(np.float32)
    triangles = np.arange(3 * n, dtype=np.int32).reshape(n, 3)
    fragments = _render.rasterise(x, y, depth, triangles, size)
    centres = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2) + 0.5
    nearest, on_edge = np.full(size**2, np.inf), np.zeros(size**2, bool)
    for corners in triangles:
        p, q, r = np.stack([x, y], 1)[corners].astype(np.float64)
        matrix = np.array([q - p, r - p]).T
        if np.linalg.det(matrix) < -1e-9:  # it faces the viewer
            u, v = np.linalg.solve(matrix, (centres - p).T)
            weights = np.stack([1 - u - v, u, v])
            on_edge |= np.abs(weights.min(0)) < 1e-4
            nearest = np.where(weights.min(0) >= 0, np.minimum(nearest, depth[corners] @ weights), nearest)
    drawn = np.full(size**2, np.inf)
    column, row, drawn[fragments.sample] = _render.interpolate(fragments, np.stack([x, y, depth], 1)).T
    np.testing.assert_allclose(drawn[~on_edge], nearest[~on_edge], atol=5e-4)
    np.testing.assert_allclose(fragments.weights.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(column, fragments.sample % size + 0.5, atol=1e-3)
    np.testing.assert_allclose(row, fragments.sample // size + 0.5, atol=1e-3)
    resolved = _render.resolve(fragments, row[:, None], 3, 3)[:, :, 0]
    full = np.zeros(size**2)
    full[fragments.sample] = row
    np.testing.assert_allclose(resolved, full.reshape(3, 3, 3, 3).mean((1, 3)), rtol=1e-5)


def test_ball_follows_lamberts_law():
    mesh = _render.polygonise(ball, GRID)
    directions = _render.sphere_directions(128)
    cosine = directions @ mesh.normals.T
    seen = _render.visibility(mesh, directions, 96, 0.1)
    assert (seen[cosine <= 0] == 0).all() and seen[cosine > 0.3].min() > 0.999
    transfer = _render.transfer(mesh, directions, seen)
    np.testing.assert_allclose(4 * transfer.mean(1), 1, atol=0.06)  # under a uniform sky
    lamps = np.float32([[0, 0, 1], [0.6, 0.8, 0], [-0.8, 0, 0.6]])
    for lit, lamp in zip((transfer @ _render.lobe(directions, lamps, 18.0)).T, lamps, strict=True):
        assert mesh.normals[lit.argmax()] @ lamp > 0.98
        assert np.corrcoef(lit, np.maximum(mesh.normals @ lamp, 0))[0, 1] > 0.99


def test_identity_coefficients_have_the_stated_covariance():
    sigma = _head.identity_covariance()
    np.testing.assert_allclose(np.diag(sigma), 1, atol=1e-12)
    assert np.linalg.eigvalsh(sigma).min() > 0
    n = 40_000
    draws = _head.draw_identities(n, 5)
    standard_error = np.sqrt((sigma**2 + 1) / n)
    assert (np.abs(draws.T @ draws / n - sigma) < 5 * standard_error).all()
    assert (np.abs(draws.mean(0)) < 5 / np.sqrt(n)).all()
    np.testing.assert_array_equal(_head.draw_identities(4, 5), draws[:4])


def draw(coefficients, azimuths=(0,), elevations=(0,), lightings=(0,), side=SIDE) -> np.ndarray:
    return faces3d.draw_faces(coefficients, azimuths, elevations, lightings, side=side).astype(np.float64)


def test_pictures_differ_and_are_inside_the_frame():
    crooked = AVERAGE.copy()
    crooked[0, _head.COEFFICIENTS.index("asymmetry")] = 3
    heads = np.concatenate([_head.draw_identities(1, 1), crooked])
    two_heads = draw(heads, [-60, 0, 45], [-24, 0, 24], [-60, 0, 60])
    for axis in range(4):
        assert np.abs(np.diff(two_heads, axis=axis)).mean((-1, -2)).min() > 1.0
    lit = (two_heads > 0).mean((-1, -2))
    assert 0.2 < lit.min() and lit.max() < 0.6 and two_heads.max() > 180
    assert not two_heads[..., [0, -1], :].any() and not two_heads[..., [0, -1]].any()
    frontal = two_heads[:, 1, 1].mean((-1, -2))  # brighter than light from either side
    assert (frontal[:, [1]] > frontal[:, [0, 2]] + 5).all()
    picture = two_heads[1, 1, 1, 1]
    assert np.abs(picture - picture[:, ::-1]).mean() > 0.5


def test_positive_angles_turn_and_light_to_the_right():
    pictures = draw(AVERAGE, [-60, 0, 60], [-30, 0, 30], [-60, 0, 60], side=64)[0]
    for one, other in ((pictures[0, 1, 0], pictures[2, 1, 2]), (pictures[1, 2, 0], pictures[1, 2, 2])):
        assert np.abs(one - other[:, ::-1]).mean() < 0.5 and np.abs(one - other).mean() > 5  # a symmetric head
    for left, right in ((pictures[1, 1, 0], pictures[1, 1, 2]), (pictures[0, 1, 1], pictures[2, 1, 1])):
        assert left[:, :32].mean() > 1.3 * left[:, 32:].mean()  # the face is brighter than the hair
        assert right[:, 32:].mean() > 1.3 * right[:, :32].mean()
    below, above = pictures[1, [0, 2], 1, :20]
    assert above.mean() < below.mean()  # more hair is seen from above
    shaded = pictures[1, 1, 2, 34:40]  # the nose casts a shadow
    assert shaded[:, 26:30].mean() < 0.7 * shaded[:, 35:39].mean()


def test_stand_in_is_that_of_the_records(tmp_path, monkeypatch):
    chosen = {"identity": [3, 17, 44], "azimuth": [1, 9, 14], "elevation": [0, 7], "lighting": [0, 7]}
    some = part("faces3d", **chosen)  # drawn as the whole is
    monkeypatch.setattr(faces3d, "FACTORS", restrict_factors(faces3d.FACTORS, list(chosen.values())))
    dataset = faces3d.load(cache_dir=tmp_path)
    assert dataset.factor_names == ("identity", "azimuth", "elevation", "lighting")
    assert all(np.array_equal(some.values[name], dataset.values[name]) for name in dataset.factor_names)
    assert dataset.units["lighting"] == "degrees" and dataset.procedural and "procedural" in dataset.title
    assert some.checksum == dataset.checksum == "b042d61394b53cd8971b2f6612c8bd14f68b35f8a08423fca03d5eb821a045ab"
    monkeypatch.setattr(faces3d, "draw_faces", lambda *_, **options: pytest.fail("drawn again"))
    assert faces3d.load(cache_dir=tmp_path).checksum == dataset.checksum


def test_the_published_renders_are_loaded(tmp_path, monkeypatch):
    faces = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 2, 4, 5), np.uint8)
    monkeypatch.setattr(faces3d, "FACTOR_SIZES", faces.shape[:4])
    monkeypatch.setattr(faces3d, "SHAPE", faces.shape)
    path = tmp_path / "basel_face_renders.pth"
    torch.save(torch.from_numpy(faces), path, _use_new_zipfile_serialization=False)
    with torch.device("meta"):  # stands for a default device that is not the CPU
        dataset = faces3d.load(path)
    assert not dataset.procedural and dataset.units["azimuth"] == "" and dataset.factor_sizes == faces.shape[:4]
    assert dataset.provenance.source_checksum.startswith("sha256:")
    np.testing.assert_array_equal(dataset.storage.numpy().ravel(), faces.ravel())
