"""Measures of disentanglement against codes whose scores follow by hand, and their invariances."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from isa.disentanglement import Disentanglement, disentanglement, informative_latents

NAN = math.nan
TWO, THREE = math.log(2), math.log(3)
ENTROPY = np.log([2.0, 8.0])  # of two factors

#: name to shares N (F, K) of the entropies of the first F factors, and MIG, InfoM, InfoC, modularity, completeness
CODES = {
    "perfect": ([[0.9, 0.0], [0.0, 0.7]], (0.8, 1, 1, 1, 1)),
    "perfect, an inactive latent": ([[0.9, 0.0, 0.0], [0.0, 0.7, 0.0]], (0.8, 1, 1, 2 / 3, 1)),
    # log 8 = 3 log 2, so equal shares are mutual information of 1 : 3, and the deviation of the latent is 1/9
    "two factors in a latent": ([[0.6, 0.0], [0.6, 0.0]], (0.6, 0, NAN, 4 / 9, 1)),
    "two factors in a latent, one in another": ([[0.6, 0.0], [0.2, 0.8]], (0.6, 0.75, 0.8, None, None)),
    "a factor in two latents": (
        [[0.4, 0.4, 0.0], [0.0, 0.0, 0.8]],
        (0.4, 1, (0.75 - 1 / 3) / (2 / 3), 1, 1 - TWO / THREE / 2),
    ),
    "everything everywhere": ([[0.5, 0.5], [0.5, 0.5]], (0, 0, 0, 8 / 9, 0)),
    "no information": ([[0.0, 0.0], [0.0, 0.0]], (0, NAN, NAN, 0, 0)),
    "a factor without information": ([[0.0, 0.0], [0.5, 0.0]], (0.25, 1, NAN, 0.5, 0.5)),
    "a factor": ([[0.5, 0.2]], (0.3, NAN, (5 / 7 - 0.5) / 0.5, NAN, None)),
    "a latent": ([[0.5], [0.0]], (0.25, 1, NAN, 1, NAN)),
}


@pytest.mark.parametrize("code", CODES)
def test_scores_of_a_code(code):
    shares, wanted = CODES[code]
    entropy = ENTROPY[: len(shares)]
    scores = disentanglement(shares * entropy[:, None], entropy)
    for score, value in zip(scores, wanted, strict=True):
        assert value is None or score == pytest.approx(value, nan_ok=True)


def test_active_latents_are_those_of_the_mask():
    information = np.array([[0.3, 0.1, 0.002], [0.0, 0.4, 0.006]])
    entropy = np.array([1.0, 2.0])
    assert informative_latents(information, entropy).tolist() == [True, True, False]
    assert informative_latents(information, entropy, 0.004).all()
    everything = disentanglement(information, entropy, [1, 1, 1])
    assert everything.info_modularity == pytest.approx((1 + 2 / 3 + 0.6) / 3 * 2 - 1)
    assert everything.info_compactness == pytest.approx(((0.3 / 0.402 + 0.4 / 0.406) / 2 - 1 / 3) * 1.5)
    assert disentanglement(information, entropy).info_modularity == pytest.approx((1 + 2 / 3) / 2 * 2 - 1)


MATRICES = arrays(float, st.tuples(st.integers(2, 5), st.integers(2, 7)), elements=st.floats(0, 1).map(lambda x: x * x))


@given(MATRICES, st.randoms(use_true_random=False))
def test_scores_are_bounded_and_ignore_order(shares, random):
    entropy = np.arange(1.0, len(shares) + 1)
    rows, columns = ([*range(size)] for size in shares.shape)
    random.shuffle(rows), random.shuffle(columns)
    information, active = shares * entropy[:, None], informative_latents(shares, np.ones(len(shares)))
    scores = disentanglement(information, entropy, active)
    assert all(-1e-9 <= score <= 1 + 1e-9 or math.isnan(score) for score in scores)
    np.testing.assert_allclose(
        disentanglement(information[rows][:, columns], entropy[rows], active[columns]), scores, atol=1e-9
    )


@given(MATRICES)
def test_only_the_modularity_sees_the_entropies(shares):
    factors = len(shares)
    active, entropies = informative_latents(shares, np.ones(factors)), (np.ones(factors), np.arange(1.0, factors + 1))
    scores, other = (disentanglement(shares * entropy[:, None], entropy, active) for entropy in entropies)
    names = [name for name in Disentanglement._fields if name != "modularity"]
    np.testing.assert_allclose(*([getattr(x, name) for name in names] for x in (scores, other)), atol=1e-9)
