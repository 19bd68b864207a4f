"""The keyed noise on the device against a CPU's."""

import pytest
import torch

from trl_exbias.rollouts.noise import _keys, _uniform_chunks, add_gumbel_, uniform

from .device import DEVICE


pytestmark = pytest.mark.quick_on_cpu

IDS, POSITIONS = [5, 9, 5, 0, 2**40], [0, 7, 8, 2, 11]


def gumbel(device: torch.device | str, ids: list[int], positions: list[int], width: int) -> torch.Tensor:
    return add_gumbel_(torch.zeros(len(ids), width, device=device), 3, ids, positions)


def test_uniforms_equal_a_cpus_to_the_bit():
    """Integer hashing, and a float of it: exact operations alone."""
    on_device = uniform(11, IDS, 300_000, DEVICE)
    assert on_device.device.type == DEVICE.type
    assert torch.equal(on_device.cpu(), uniform(11, IDS, 300_000))
    keys = [_keys(3, IDS, POSITIONS, torch.device(device)) for device in (DEVICE, "cpu")]
    chunks = [torch.cat([u.cpu() for _, u in _uniform_chunks(key, 70_000)]) for key in keys]
    assert torch.equal(*chunks)


def test_gumbel_noise_differs_from_a_cpus_by_the_last_places_of_two_logarithms(record):
    """
    `log` and `log1p` are off by an ulp or two on either device, and by others. An error e of the inner one's value E is an
    error e/E of log E: two ulps of 1, wherever the noise itself is small.
    """
    found, expected = gumbel(DEVICE, IDS, POSITIONS, 300_000).cpu(), gumbel("cpu", IDS, POSITIONS, 300_000)
    ulps = (found - expected).abs() / (torch.finfo(torch.float32).eps * expected.abs().clamp(min=1))
    record(largest_difference_in_ulps=ulps.max().item(), share_equal_to_the_bit=(ulps == 0).float().mean().item())
    assert ulps.max() <= 4


def test_a_row_gets_the_same_noise_whatever_stands_beside_it_across_chunks():
    """1024 rows are a chunk on a GPU."""
    ids, positions = list(range(1100)), [3] * 1100
    together = gumbel(DEVICE, ids, positions, 1000)
    for row in (0, 511, 1023, 1024, 1099):
        assert torch.equal(together[row : row + 1], gumbel(DEVICE, [row], [3], 1000))
