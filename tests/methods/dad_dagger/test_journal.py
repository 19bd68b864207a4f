"""Labels that were on the disk before a kill are there after it."""

import torch

from trl_exbias.core.tensor_cache import SHARDS, TensorCache
from trl_exbias.methods.dad_dagger.journal import Journal, recover


def entry(number: int, length: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(number)
    return {
        "ids": torch.randint(0, 9, (length, 3), dtype=torch.int32),
        "log_probs": torch.randn(length, 3),
        "tail_log_prob": torch.tensor([-float("inf")] * length),
    }


def test_what_was_written_is_taken_over_to_the_bit_and_half_a_line_is_not(tmp_path):
    killed, other = Journal(tmp_path), Journal(tmp_path)
    for number in range(3):
        (killed if number else other).add(bytes([number]) * 16, entry(number))
    with open(killed.path, "r+b") as file:
        file.truncate(killed.path.stat().st_size - 20)
    cache = TensorCache(tmp_path, "labels")
    recover(cache)
    for number in range(2):
        found = cache.get(bytes([number]) * 16)
        assert all(torch.equal(found[name], tensor) for name, tensor in entry(number).items())
        assert {name: tensor.dtype for name, tensor in found.items()} == {k: v.dtype for k, v in entry(0).items()}
    assert bytes([2]) * 16 not in cache
    assert not [*tmp_path.glob("answers-*")]


def test_a_journal_of_a_shard_that_was_written_adds_nothing(tmp_path):
    cache, journal = TensorCache(tmp_path, "labels"), Journal(tmp_path)
    key = bytes(16)
    journal.add(key, entry(0))
    cache.add({key: entry(0)})
    recover(cache)
    assert len([*tmp_path.glob(SHARDS)]) == 1 and not journal.path.exists()


def test_without_journals_nothing_is_written(tmp_path):
    recover(TensorCache(tmp_path / "none", "labels"))
    assert not (tmp_path / "none").exists()
