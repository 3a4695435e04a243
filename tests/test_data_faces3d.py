"""The software renderer, the procedural heads, and the reader of the real renders."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.data import SourceError, SourceMissingError, _head, _render, faces3d

SIDE = 32


# --- renderer: solids -------------------------------------------------------------------------------------------------


def ball(x, y, z, centre=(0.0, 0.0, 0.0), radius=1.0):
    return np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) - radius


def grid(low=-1.6, high=1.6, n=41):
    return (np.linspace(low, high, n),) * 3


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.01, 3))
def test_blends_are_bounded_and_exact_where_solids_are_far_apart(a, b, blend):
    a32, b32 = np.float32(a), np.float32(b)
    union = _render.union(a32, b32, blend)
    assert min(a32, b32) - blend / 4 - 1e-5 <= union <= min(a32, b32) + 1e-5
    assert _render.intersection(a32, b32, blend) == pytest.approx(-_render.union(-a32, -b32, blend))
    assert _render.carve(a32, b32, blend) == pytest.approx(_render.intersection(a32, -b32, blend))
    if abs(a32 - b32) >= blend:
        assert union == min(a32, b32)


def test_ellipsoid_and_capsule_distances():
    rng = np.random.default_rng(0)
    p = rng.normal(size=(3, 500)).astype(np.float32)
    np.testing.assert_allclose(_render.ellipsoid(*p, (0.7, 0.7, 0.7)), ball(*p, radius=0.7), atol=2e-6)
    radii = np.array([0.5, 1.0, 2.0])
    on_surface = (p / np.sqrt((p**2).sum(0))) * radii[:, None].astype(np.float32)
    assert np.abs(_render.ellipsoid(*on_surface, radii)).max() < 1e-5
    start, end = np.array([-1.0, 0.2, 0.0]), np.array([0.5, 0.1, 1.0])
    t = np.linspace(0, 1, 4001)
    points = start + t[:, None] * (end - start)
    brute = np.sqrt(((p.T[:, None] - points) ** 2).sum(-1)).min(1) - 0.3
    np.testing.assert_allclose(_render.capsule(*p, start, end, 0.3), brute, atol=1e-3)


def test_polygon_distance_against_brute_force():
    rng = np.random.default_rng(1)
    corners = [(0.0, 0.0), (2.0, 0.1), (1.6, 1.2), (1.0, 0.6), (0.3, 1.5)]
    x, y = rng.uniform(-1, 3, (2, 400)).astype(np.float32)
    ring = np.array([*corners, corners[0]])
    boundary = np.concatenate([a + np.linspace(0, 1, 3001)[:, None] * (b - a) for a, b in pairwise(ring)])
    brute = np.sqrt((x[:, None] - boundary[:, 0]) ** 2 + (y[:, None] - boundary[:, 1]) ** 2).min(1)
    # winding number by the angle that the boundary sweeps as seen from the point
    to = (boundary[None] - np.stack([x, y], 1)[:, None]) @ np.array([1, 1j])
    inside = np.abs(np.angle(to[:, 1:] / to[:, :-1]).sum(1)) > np.pi
    for order in (corners, corners[::-1]):
        found = _render.polygon(x, y, order)
        np.testing.assert_allclose(np.abs(found), brute, atol=1e-3)
        np.testing.assert_array_equal(found < 0, inside)


@pytest.mark.parametrize("coarse", [1, 4, 7])
def test_polygonised_ball_is_a_closed_outward_sphere(coarse):
    mesh = _render.polygonise(lambda x, y, z: ball(x, y, z, (0.1, -0.2, 0.05)), grid(), coarse=coarse)
    arms = mesh.vertices - np.float32([0.1, -0.2, 0.05])
    # the gradient's stencil reaches a quarter of the spacing, 0.02: the surface is off by its curvature times 0.02^2
    np.testing.assert_allclose(np.sqrt((arms**2).sum(1)), 1, atol=5e-4)
    np.testing.assert_allclose(mesh.normals, arms, atol=0.01)
    np.testing.assert_allclose((mesh.normals**2).sum(1), 1, atol=1e-5)
    a, b, c = (arms[mesh.triangles[:, k]].astype(np.float64) for k in range(3))
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6
    area = np.sqrt((np.cross(b - a, c - a) ** 2).sum(1)).sum() / 2
    assert volume == pytest.approx(4 / 3 * np.pi, rel=0.01)
    assert area == pytest.approx(4 * np.pi, rel=0.01)
    edges = np.sort(
        np.concatenate([mesh.triangles[:, [0, 1]], mesh.triangles[:, [1, 2]], mesh.triangles[:, [2, 0]]]), 1
    )
    _, uses = np.unique(edges, axis=0, return_counts=True)
    assert (uses == 2).all()
    assert len(mesh.vertices) - len(uses) + len(mesh.triangles) == 2


def test_polygonise_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="empty on this grid"):
        _render.polygonise(lambda x, y, z: ball(x, y, z, (9, 9, 9)), grid())
    with pytest.raises(ValueError, match="widen the axes"):
        _render.polygonise(lambda x, y, z: ball(x, y, z, radius=1.7), grid())


# --- renderer: samples and light --------------------------------------------------------------------------------------


def rasterise_by_loop(x, y, depth, triangles, size):
    """Least depth over the front-facing triangles, a sample at a time in double precision; samples on an edge apart."""
    found, on_edge = {}, set()
    for i, j, k in triangles:
        p, q, r = (np.array([x[v], y[v]], np.float64) for v in (i, j, k))
        matrix = np.array([q - p, r - p]).T
        if np.linalg.det(matrix) >= -1e-9:
            continue
        for row in range(size):
            for column in range(size):
                u, v = np.linalg.solve(matrix, np.array([column + 0.5, row + 0.5]) - p)
                key = row * size + column
                if abs(min(u, v, 1 - u - v)) < 1e-4:
                    on_edge.add(key)
                if u >= 0 and v >= 0 and u + v <= 1:
                    z = (1 - u - v) * depth[i] + u * depth[j] + v * depth[k]
                    found[key] = min(z, found.get(key, np.inf))
    return found, on_edge


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_rasteriser_against_a_loop_over_samples(seed):
    rng = np.random.default_rng(seed)
    size, n = 9, 7
    x, y = rng.uniform(-2, size + 2, (2, 3 * n)).astype(np.float32)
    depth = rng.uniform(1, 5, 3 * n).astype(np.float32)
    triangles = np.arange(3 * n, dtype=np.int32).reshape(n, 3)
    fragments = _render.rasterise(x, y, depth, triangles, size)
    expected, on_edge = rasterise_by_loop(x, y, depth, triangles, size)
    found = dict(zip(fragments.sample.tolist(), (depth[fragments.corners] * fragments.weights).sum(1), strict=True))
    assert set(found) - on_edge == set(expected) - on_edge
    for sample in set(expected) - on_edge:
        assert found[sample] == pytest.approx(expected[sample], abs=5e-4)
    np.testing.assert_allclose(fragments.weights.sum(1), 1, atol=1e-5)
    column = _render.interpolate(fragments, x[:, None])[:, 0]
    row = _render.interpolate(fragments, y[:, None])[:, 0]
    np.testing.assert_allclose(column, fragments.sample % size + 0.5, atol=1e-3)
    np.testing.assert_allclose(row, fragments.sample // size + 0.5, atol=1e-3)


def test_nothing_in_view_is_no_fragment_and_all_background():
    corners = np.array([[0, 1, 2]], np.int32)
    away = np.float32([50, 60, 50])
    fragments = _render.rasterise(away, away, np.ones(3, np.float32), corners, 8)
    assert fragments.sample.size == 0
    picture = _render.resolve(fragments, np.zeros((0, 2), np.float32), 4, 2, background=0.25)
    np.testing.assert_array_equal(picture, np.full((4, 4, 2), np.float32(0.25)))


def test_resolve_averages_samples():
    rng = np.random.default_rng(2)
    values = rng.random((36, 1)).astype(np.float32)
    fragments = _render.Fragments(np.arange(36), np.zeros((36, 3), np.int32), np.zeros((36, 3), np.float32))
    picture = _render.resolve(fragments, values, 2, 3)[:, :, 0]
    np.testing.assert_allclose(picture, values.reshape(2, 3, 2, 3).mean((1, 3)), rtol=1e-6)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 3, 1), (5000, 3, 3), (4097, 48, 1), (3001, 128, 11)])
def test_product_is_the_matrix_product(m, k, n):
    rng = np.random.default_rng(m)
    a, b = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(k, n)).astype(np.float32)
    np.testing.assert_allclose(_render.product(a, b), a.astype(np.float64) @ b, atol=1e-4)


def test_directions_are_uniform_and_mirrored_and_lobes_are_averages():
    directions = _render.sphere_directions(128)
    np.testing.assert_allclose((directions**2).sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(directions[64:], directions[:64] * np.float32([-1, 1, 1]))
    # second moments of the uniform sphere are 1/3 on the diagonal, 0 off it
    np.testing.assert_allclose(directions.T @ directions / 128, np.eye(3) / 3, atol=0.02)
    centre = np.float32([[0, 0, 1], [0.6, 0.8, 0]])
    weights = _render.lobe(directions, centre, 18.0)
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)
    mean = weights.T @ directions
    np.testing.assert_allclose(mean / np.linalg.norm(mean, axis=1, keepdims=True), centre, atol=0.06)
    with pytest.raises(ValueError, match="even number of directions, got 5"):
        _render.sphere_directions(5)


def test_a_convex_solid_casts_no_shadow_on_itself():
    mesh = _render.polygonise(ball, grid())
    directions = _render.sphere_directions(128)
    cosine = directions @ mesh.normals.T
    seen = _render.visibility(mesh, directions, 96, 0.1)
    assert (seen[cosine <= 0] == 0).all()
    assert seen[cosine > 0.3].min() > 0.999
    # under a uniform sky a convex surface receives pi, here scaled so that it is 1
    received = 4 * _render.transfer(mesh, directions, seen).mean(1)
    np.testing.assert_allclose(received, 1, atol=0.06)


def test_one_ball_shades_another():
    both = lambda x, y, z: np.minimum(ball(x, y, z, (0, -0.8, 0), 0.5), ball(x, y, z, (0, 0.8, 0), 0.5))  # noqa: E731
    mesh = _render.polygonise(both, grid())
    above = np.float32([[0, 1, 0]])
    seen = _render.visibility(mesh, above, 96, 0.1)[0]
    facing = mesh.normals[:, 1] > 0.6
    assert (seen[facing & (mesh.vertices[:, 1] > 0)] > 0.999).all()
    assert (seen[facing & (mesh.vertices[:, 1] < 0)] < 0.001).all()


def test_in_order_keeps_order_and_passes_errors_on():
    assert list(_render.in_order(lambda i: i * i, range(20), workers=3)) == [i * i for i in range(20)]

    def fail(i):
        if i == 3:
            raise RuntimeError("three")
        return i

    with pytest.raises(RuntimeError, match="three"):
        list(_render.in_order(fail, range(6), workers=2))


# --- heads: identities ------------------------------------------------------------------------------------------------


def test_identity_coefficients_have_the_stated_covariance():
    sigma = _head.identity_covariance()
    assert sigma.shape == (len(_head.COEFFICIENTS),) * 2
    np.testing.assert_allclose(np.diag(sigma), 1, atol=1e-12)
    assert np.linalg.eigvalsh(sigma).min() > 0
    off = np.abs(sigma - np.eye(len(sigma)))
    assert 0.3 < off.max() < 0.7
    n = 40_000
    draws = _head.draw_identities(n, 5)
    standard_error = np.sqrt((sigma**2 + 1) / n)
    assert (np.abs(draws.T @ draws / n - sigma) < 5 * standard_error).all()
    assert (np.abs(draws.mean(0)) < 5 / np.sqrt(n)).all()


def test_identities_do_not_depend_on_how_many_are_drawn():
    np.testing.assert_array_equal(_head.draw_identities(50, 3)[:4], _head.draw_identities(4, 3))
    assert not np.array_equal(_head.draw_identities(4, 3), _head.draw_identities(4, 4))


@pytest.fixture(scope="module")
def average():
    return _head.build_head(np.zeros(len(_head.COEFFICIENTS)))


def test_average_head_has_human_measures(average):
    low, high = average.mesh.vertices.min(0), average.mesh.vertices.max(0)
    skull = average.mesh.vertices[average.mesh.vertices[:, 1] > 3]
    assert 14 < np.ptp(skull[:, 0]) < 16.5
    assert 18 < np.ptp(skull[:, 2]) < 21
    assert 20 < high[1] - -11.2 < 24
    nose = average.mesh.vertices[average.mesh.vertices[:, 2].argmax()]
    assert abs(nose[0]) < 0.3
    assert -4.5 < nose[1] < -2.5
    np.testing.assert_allclose(low[0], -high[0], atol=0.02)
    assert ((average.albedo > 0) & (average.albedo < 1)).all()


@pytest.mark.parametrize("name", _head.COEFFICIENTS)
def test_every_coefficient_changes_the_head(average, name):
    coefficients = np.zeros(len(_head.COEFFICIENTS))
    coefficients[_head.COEFFICIENTS.index(name)] = 2.0
    shape, plain = _head._Shape(coefficients), _head._Shape(np.zeros(len(_head.COEFFICIENTS)))
    points, normals = average.mesh.vertices, average.mesh.normals
    moved = np.abs(shape.distance(*points.T) - plain.distance(*points.T)).max()
    painted = np.abs(shape.surface(*points.T, normals[:, 1])[0] - plain.surface(*points.T, normals[:, 1])[0]).max()
    pigment = name in ("skin", "hair", "eyebrows")
    assert painted > 0.05 if pigment else moved > 0.05


def test_build_head_refuses_bad_coefficients():
    with pytest.raises(ValueError, match=r"21 finite numbers, got an array of shape \(3,\)"):
        _head.build_head(np.zeros(3))
    with pytest.raises(ValueError, match="21 finite numbers"):
        _head.build_head(np.full(21, np.nan))


# --- heads: pictures --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_heads():
    """Two identities over a coarse grid of poses and lights, (2, 3, 3, 3, SIDE, SIDE)."""
    return faces3d.draw_faces(_head.draw_identities(2, 1), [-60, 0, 45], [-24, 0, 24], [-60, 0, 60], side=SIDE)


def test_drawing_is_deterministic_whatever_the_number_of_threads(two_heads, monkeypatch):
    in_order = _render.in_order
    for workers in (1, 3):
        monkeypatch.setattr(_render, "in_order", lambda f, items, w=workers: in_order(f, items, w))
        again = faces3d.draw_faces(_head.draw_identities(2, 1), [45], [0, 24], [0, 60], side=SIDE)
        np.testing.assert_array_equal(again, two_heads[:, 2:, 1:, 1:])


def test_every_factor_changes_every_picture(two_heads):
    assert two_heads.shape == (2, 3, 3, 3, SIDE, SIDE)
    assert two_heads.dtype == np.uint8
    pictures = two_heads.astype(np.float64)
    for axis in range(4):
        assert np.abs(np.diff(pictures, axis=axis)).mean((-1, -2)).min() > 1.0


def test_no_picture_is_empty_and_the_background_is_black(two_heads):
    lit = (two_heads > 0).mean((-1, -2))
    assert lit.min() > 0.2
    assert lit.max() < 0.6
    border = np.concatenate([two_heads[..., [0, -1], :].reshape(-1), two_heads[..., [0, -1]].reshape(-1)])
    assert not border.any()
    assert two_heads.max() > 180


def test_all_silhouettes_of_the_data_set_lie_inside_the_frame():
    for coefficients in _head.draw_identities(faces3d.FACTOR_SIZES[0], faces3d._SEED):
        vertices = _head.build_head(coefficients, spacing=0.6).mesh.vertices
        for azimuth in (-90, -45, 0, 45, 90):
            for elevation in (-30, 0, 30):
                x, y, _ = faces3d._project(vertices, faces3d._rotation(azimuth, elevation), faces3d.SIDE)
                assert min(x.min(), y.min()) > 1
                assert max(x.max(), y.max()) < faces3d.SIDE - 1


def test_mirrored_pose_and_light_mirror_a_symmetric_head():
    zero = np.zeros((1, len(_head.COEFFICIENTS)))
    pictures = faces3d.draw_faces(zero, [-27, 27], [12], [-45, 45], side=SIDE)[0, :, 0].astype(np.float64)
    for i, j in ((0, 0), (0, 1)):
        mirrored = pictures[1 - i, 1 - j, :, ::-1]
        assert np.abs(pictures[i, j] - mirrored).mean() < 0.5
        assert np.abs(pictures[i, j] - pictures[1 - i, 1 - j]).mean() > 5
    crooked = zero.copy()
    crooked[0, _head.COEFFICIENTS.index("asymmetry")] = 3
    pictures = faces3d.draw_faces(crooked, [0], [0], [0], side=SIDE)[0, 0, 0, 0].astype(np.float64)
    assert np.abs(pictures - pictures[:, ::-1]).mean() > 0.5


def test_positive_angles_turn_and_light_to_the_right():
    zero = np.zeros((1, len(_head.COEFFICIENTS)))
    frontal = faces3d.draw_faces(zero, [0], [0], [-75, 75], side=SIDE)[0, 0, 0].astype(np.float64)
    left, right = frontal[..., : SIDE // 2].mean((-1, -2)), frontal[..., SIDE // 2 :].mean((-1, -2))
    assert left[0] > 1.3 * right[0]
    assert right[1] > 1.3 * left[1]
    nose = _head.build_head(zero[0], 0.5).mesh.vertices
    nose = nose[nose[:, 2].argmax()][None]
    for azimuth, elevation in ((40, 0), (0, 25)):
        x, y, _ = faces3d._project(nose, faces3d._rotation(azimuth, elevation), 64)
        assert (x[0] > 40) == (azimuth > 0)
        _, y0, _ = faces3d._project(nose, faces3d._rotation(0, 0), 64)
        assert (y[0] > y0[0] + 4) == (elevation > 0)


def test_shading_is_brightest_towards_the_lamp():
    mesh = _render.polygonise(lambda x, y, z: ball(x, y, z, radius=9.0), (np.linspace(-11, 11, 45),) * 3)
    n = len(mesh.vertices)
    head = faces3d._LitHead(_head.Head(mesh, np.full(n, 0.4, np.float32), np.zeros(n, np.float32)))
    lightings = np.array([-60.0, 0.0, 45.0])
    lamps = faces3d._lamps(lightings)
    light = head.transfer @ _render.lobe(head.directions, lamps, faces3d._LAMP_CONCENTRATION)
    for k, lamp in enumerate(lamps):
        assert mesh.normals[light[:, k].argmax()] @ lamp > 0.98
        # a wide lamp is Lambert's law seen through a blur: correlation with the cosine is all but perfect
        assert np.corrcoef(light[:, k], np.maximum(mesh.normals @ lamp, 0))[0, 1] > 0.99
    pictures = head.draw(0, 0, lightings, 48).astype(np.float64)
    centre = [np.average(np.arange(48), weights=p.sum(0)) for p in pictures]
    assert centre[0] < centre[1] < centre[2]


def test_frontal_light_is_brighter_than_light_from_the_side(two_heads):
    mean = two_heads[:, 1, 1].astype(np.float64).mean((-1, -2))
    assert (mean[:, 1] > mean[:, 0] + 5).all()
    assert (mean[:, 1] > mean[:, 2] + 5).all()


def test_nose_casts_a_shadow(monkeypatch):
    zero = np.zeros((1, len(_head.COEFFICIENTS)))
    shaded = faces3d.draw_faces(zero, [0], [0], [60], side=64)[0, 0, 0, 0].astype(np.float64)
    monkeypatch.setattr(
        _render, "visibility", lambda mesh, directions, *_: (directions @ mesh.normals.T > 0).astype(np.float32)
    )
    bare = faces3d.draw_faces(zero, [0], [0], [60], side=64)[0, 0, 0, 0].astype(np.float64)
    darker = bare - shaded
    assert darker.min() > -3
    x, y, _ = faces3d._project(np.float32([[-1.6, -3.2, 9.0], [1.9, -3.2, 9.0]]), faces3d._rotation(0, 0), 64)
    column, row = x.astype(int), y.astype(int)
    beside = [darker[r - 2 : r + 3, c - 1 : c + 2].mean() for r, c in zip(row, column, strict=True)]
    assert beside[0] > 12
    assert beside[0] > 3 * beside[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coefficients": np.zeros(21)}, r"coefficients must have shape \(identities, 21\), got \(21,\)"),
        ({"azimuths": 3.0}, "azimuths must be a one-dimensional"),
        ({"elevations": [np.nan]}, "elevations must be a one-dimensional"),
        ({"lightings": [[0.0]]}, "lightings must be a one-dimensional"),
        ({"side": 0}, "side must be at least 1 pixel, got 0"),
    ],
)
def test_draw_faces_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        faces3d.draw_faces(**{"coefficients": np.zeros((1, 21)), **arguments})


def test_load_draws_once_and_says_that_it_is_a_stand_in(tmp_path, monkeypatch):
    sizes = (2, 3, 1, 2)
    monkeypatch.setattr(faces3d, "FACTOR_SIZES", sizes)
    monkeypatch.setattr(faces3d, "SHAPE", (*sizes, 64, 64))
    monkeypatch.setattr(faces3d, "AZIMUTHS", np.array([-30.0, 0.0, 30.0]))
    monkeypatch.setattr(faces3d, "ELEVATIONS", np.array([6.0]))
    monkeypatch.setattr(faces3d, "LIGHTINGS", np.array([-15.0, 45.0]))
    dataset = faces3d.load(cache_dir=tmp_path)
    assert dataset.factor_names == ("identity", "azimuth", "elevation", "lighting")
    assert dataset.factor_sizes == sizes
    assert dataset.procedural
    assert "procedural" in dataset.title
    assert dataset.units["lighting"] == "degrees"
    direct = faces3d.draw_faces(_head.draw_identities(2, faces3d._SEED), [0], [6], [45])[1, 0, 0, 0]
    index = dataset.index(identity=1, azimuth=1, elevation=0, lighting=1)
    np.testing.assert_allclose(dataset.images(index)[0, 0].numpy(), direct / 255, atol=1e-6)

    def never(*args, **kwargs):
        raise AssertionError("drawn again although it is in the cache")

    monkeypatch.setattr(faces3d, "draw_faces", never)
    assert faces3d.load(cache_dir=tmp_path).checksum == dataset.checksum


def test_grid_of_the_data_set():
    assert np.prod(faces3d.FACTOR_SIZES) == 127_050
    assert [len(v) for v in (faces3d.AZIMUTHS, faces3d.ELEVATIONS, faces3d.LIGHTINGS)] == [21, 11, 11]
    for values, end in ((faces3d.AZIMUTHS, 90), (faces3d.ELEVATIONS, 30), (faces3d.LIGHTINGS, 75)):
        np.testing.assert_allclose(values, -values[::-1], atol=1e-12)
        assert values[-1] == end
        np.testing.assert_allclose(np.diff(values, 2), 0, atol=1e-12)


# --- the real file ----------------------------------------------------------------------------------------------------

SHAPE = (2, 3, 2, 2, 4, 5)


def small():
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


def write(path, array):
    if path.suffix in (".pth", ".pt"):
        torch.save(torch.from_numpy(array), path)
    elif path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, faces=array)
    else:
        scipy.io.savemat(path, {"faces": array})
    return path


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


SUFFIXES = [".pth", ".pt", ".npy", ".npz", ".mat"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_read(tmp_path, suffix):
    found = faces3d.read_faces(write(tmp_path / f"faces{suffix}", small()), SHAPE)
    np.testing.assert_array_equal(found, small())
    assert found.flags.c_contiguous
    assert found.flags.writeable


def test_fortran_order_and_legacy_torch_files_are_read(tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(small()))
    torch.save(torch.from_numpy(small()), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("f.npy", "old.pth"):
        np.testing.assert_array_equal(faces3d.read_faces(tmp_path / name, SHAPE), small())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_wrong_shape_and_type_are_named(tmp_path, suffix):
    path = write(tmp_path / f"faces{suffix}", small()[:1])
    with pytest.raises(SourceError, match=r"faces.*uint8.*\(2, 3, 2, 2, 4, 5\), found"):
        faces3d.read_faces(path, SHAPE)
    path = write(tmp_path / f"floats{suffix}", small().astype(np.float32))
    with pytest.raises(SourceError, match=r"must .*uint8.*found .*(float32|single)"):
        faces3d.read_faces(path, SHAPE)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_and_foreign_files_are_refused(tmp_path, suffix):
    path = write(tmp_path / f"faces{suffix}", small())
    whole = path.read_bytes()
    for kept in (0, 7, len(whole) // 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(SourceError, match="faces"):
            faces3d.read_faces(path, SHAPE)
    path.write_bytes(b"this is no array at all\n" * 20)
    with pytest.raises(SourceError, match="faces"):
        faces3d.read_faces(path, SHAPE)


@pytest.mark.parametrize("suffix", [".pth", ".npy", ".npz"])
def test_pickled_objects_are_never_run(tmp_path, suffix):
    flag, path = tmp_path / "ran", tmp_path / f"bomb{suffix}"
    if suffix == ".pth":
        torch.save({"faces": Bomb(flag)}, path)
    elif suffix == ".npy":
        np.save(path, np.array([Bomb(flag)], object), allow_pickle=True)
    else:
        np.savez(path, faces=np.array([Bomb(flag)], object))
    with pytest.raises(SourceError, match=r"never|pickled"):
        faces3d.read_faces(path, SHAPE)
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Bomb(flag)))
    with pytest.raises(SourceError, match="never unpickled"):
        faces3d.read_faces(plain, SHAPE)
    assert not flag.exists()


def test_other_contents_are_refused(tmp_path):
    torch.save({"faces": torch.from_numpy(small())}, tmp_path / "dict.pth")
    with pytest.raises(SourceError, match="must hold one tensor, found a dict"):
        faces3d.read_faces(tmp_path / "dict.pth", SHAPE)
    np.savez(tmp_path / "two.npz", a=small(), b=small())
    with pytest.raises(SourceError, match="exactly one array, found 2"):
        faces3d.read_faces(tmp_path / "two.npz", SHAPE)
    np.savez(tmp_path / "zip.npz", a=small())
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    with pytest.raises(SourceError, match=r"name it \.npz"):
        faces3d.read_faces(tmp_path / "zip.npy", SHAPE)
    scipy.io.savemat(tmp_path / "two.mat", {"a": small(), "b": small()})
    with pytest.raises(SourceError, match=r"exactly one uint8 array.*found a \(uint8"):
        faces3d.read_faces(tmp_path / "two.mat", SHAPE)
    (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x00" * 400)
    with pytest.raises(SourceError, match=r"version 7\.3"):
        faces3d.read_faces(tmp_path / "new.mat", SHAPE)


def test_missing_files_and_other_suffixes_are_named(tmp_path):
    with pytest.raises(SourceMissingError, match=r"nothing\.pth does not exist"):
        faces3d.read_faces(tmp_path / "nothing.pth")
    with pytest.raises(SourceError, match=r"the suffix '\.zip'"):
        faces3d.read_faces(tmp_path / "faces.zip")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(SourceError, match="is not a file"):
        faces3d.read_faces(tmp_path / "folder.npy")


def test_load_reads_the_real_file(tmp_path, monkeypatch):
    sizes = SHAPE[:4]
    monkeypatch.setattr(faces3d, "FACTOR_SIZES", sizes)
    monkeypatch.setattr(faces3d, "SHAPE", (*sizes, 64, 64))
    images = np.random.default_rng(1).integers(0, 256, (*sizes, 64, 64), np.uint8)
    path = write(tmp_path / "basel_face_renders.pth", images)
    dataset = faces3d.load(path)
    assert not dataset.procedural
    assert dataset.factor_sizes == sizes
    assert dataset.provenance.source_checksum.startswith("sha256:")
    assert dataset.units["azimuth"] == ""
    index = dataset.index(identity=1, azimuth=2, elevation=0, lighting=1)
    np.testing.assert_allclose(dataset.images(index)[0, 0].numpy(), images[1, 2, 0, 1] / 255, atol=1e-6)
