import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_exbias.rollouts.noise import add_gumbel_, derive_seed, uniform


def gumbel(seed: int, example_ids: list[int], positions: list[int], width: int) -> torch.Tensor:
    return add_gumbel_(torch.zeros(len(example_ids), width), seed, example_ids, positions)


def test_a_row_gets_the_same_noise_whatever_stands_beside_it():
    together = gumbel(3, [5, 9, 5, 0], [0, 7, 8, 2], 1000)
    alone = [gumbel(3, [e], [p], 1000) for e, p in ((5, 0), (9, 7), (5, 8), (0, 2))]
    assert torch.equal(together, torch.cat(alone))


def test_a_chunk_boundary_changes_nothing():
    """2^19 elements a chunk: 3 rows of 300,000 are three chunks, one row each is one."""
    together = gumbel(1, [0, 1, 2], [4, 4, 4], 300_000)
    assert torch.equal(together[1:2], gumbel(1, [1], [4], 300_000))


@pytest.mark.parametrize("other", [(4, 5, 0), (3, 6, 0), (3, 5, 1)])
def test_every_part_of_the_key_matters(other):
    a, b = gumbel(3, [5], [0], 50_000)[0], gumbel(other[0], [other[1]], [other[2]], 50_000)[0]
    correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
    assert abs(correlation) < 5 / math.sqrt(50_000)


def test_noise_is_standard_gumbel():
    """Mean γ = 0.5772, variance π²/6 = 1.6449, P(G ≤ 0) = 1/e."""
    noise = gumbel(0, list(range(20)), [1] * 20, 50_000).double()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.005)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.01)
    assert (noise <= 0).double().mean().item() == pytest.approx(1 / math.e, abs=0.002)
    assert noise.isfinite().all()


def test_the_argmax_draws_from_the_softmax():
    """χ² of 100,000 draws over five tokens, 4 degrees of freedom: 18.5 is the 0.1 % point."""
    probabilities = torch.softmax(torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0]), 0)
    n = 100_000
    scores = probabilities.log().repeat(n, 1)
    counts = torch.bincount(add_gumbel_(scores, 7, list(range(n)), [3] * n).argmax(-1), minlength=5)
    expected = probabilities * n
    assert ((counts - expected) ** 2 / expected).sum().item() < 18.5


def test_a_certain_token_always_wins():
    scores = torch.full((1000, 50), float("-inf"))
    scores[:, 17] = 0.0
    assert (add_gumbel_(scores, 0, list(range(1000)), [0] * 1000).argmax(-1) == 17).all()


def test_uniforms_are_uniform_and_keyed():
    draws = uniform(11, list(range(200)), 500)
    assert draws.min() > 0 and draws.max() < 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.005)
    assert torch.equal(uniform(11, [42], 500)[0], draws[42])


@given(st.integers(0, 2**63), st.lists(st.integers(0, 2**40) | st.text(max_size=20), max_size=3))
def test_derived_seeds_fit_64_bits_and_repeat(seed, path):
    derived = derive_seed(seed, *path)
    assert 0 <= derived < 2**64
    assert derived == derive_seed(seed, *path)


def test_derived_seeds_differ_by_path():
    paths = [
        (),
        (0,),
        (1,),
        ("rows",),
        ("mask",),
        (0, 0),
        (0, 1),
        ("a long name of a stream",),
        ("a long name of a stream!",),
    ]
    assert len({derive_seed(5, *path) for path in paths}) == len(paths)
