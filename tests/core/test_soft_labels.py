import pickle

import pytest
import torch

from trl_exbias.core.branches import Branch, concatenate
from trl_exbias.core.soft_labels import soft_label_key
from trl_exbias.core.tensor_cache import TensorCache


def entries():
    generator = torch.Generator().manual_seed(0)
    return {
        bytes([i]) * 16: {"hidden": torch.randn(3 + i, 4, generator=generator), "extra": torch.arange(3 + i)}
        for i in range(3)
    }


def test_what_is_written_is_read_back(tmp_path):
    cache, written = TensorCache(tmp_path / "new", "soft labels"), entries()
    cache.add(written)
    for reader in (cache, TensorCache(tmp_path / "new", "soft labels"), pickle.loads(pickle.dumps(cache))):
        for key, tensors in written.items():
            assert key in reader
            found = reader.get(key)
            assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert b"\xff" * 16 not in cache


def test_half_precision_is_kept(tmp_path):
    cache = TensorCache(tmp_path, "soft labels")
    cache.add({b"a" * 16: {"hidden": torch.ones(2, 3, dtype=torch.bfloat16)}})
    assert cache.get(b"a" * 16)["hidden"].dtype == torch.bfloat16


def test_a_truncated_shard_is_removed_and_said_so(tmp_path, caplog):
    cache = TensorCache(tmp_path, "soft labels")
    cache.add(entries())
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    again = TensorCache(tmp_path, "soft labels")
    assert not any(key in again for key in entries())
    assert "cannot be read" in caplog.text and not path.exists()


def test_shards_of_other_processes_are_found(tmp_path):
    mine, theirs = TensorCache(tmp_path, "soft labels"), TensorCache(tmp_path, "soft labels")
    theirs.add(entries())
    assert bytes(16) not in mine
    mine.refresh()
    assert bytes(16) in mine


@pytest.mark.parametrize(
    ("context", "tokens", "labels"),
    [([1, 2], [3, 4], [3, 4]), ([1], [2, 3, 4], [2, 3, 4]), ([1, 2], [3, 5], [3, 4]), ([1, 2], [3, 4], [-100, 4])],
)
def test_the_key_tells_contexts_tokens_and_scored_positions_apart(context, tokens, labels):
    key = soft_label_key(context, Branch("x", tokens, labels))
    assert (key == soft_label_key([1, 2], Branch("gold", [3, 4], [3, 4]))) == (context == [1, 2] and tokens == labels)
    # Which label a position has is the hard label's business; the teacher's distribution does not depend on it.
    assert soft_label_key([1, 2], Branch("y", [3, 4], [7, 8])) == soft_label_key([1, 2], Branch("z", [3, 4], [3, 4]))


def test_branches_are_joined_in_order():
    parts = [{"hidden": torch.zeros(2, 1)}, {"hidden": torch.ones(1, 1)}]
    assert concatenate(parts)["hidden"].flatten().tolist() == [0, 0, 1]
