import json

import pytest
from datasets import load_dataset

from trl_exbias.core.branches import Branch
from trl_exbias.core.files import write_atomically
from trl_exbias.run.rollout_store import RolloutStore, RolloutStoreError


HEADER = {"method": "BASH", "policy_step": 10, "policy": "abc", "beta": 0.2, "top_p": 1.0}
ROLLOUTS = [
    {4: [Branch("mixed", [1, 2, 3], [1, -100, 3])], 0: [Branch("mixed", [7], [7]), Branch("own", [], [], 0.5, -2.5)]},
    {2: [], 1: [Branch("mixed", [9, 9], [9, 8])]},
]


@pytest.fixture
def store(tmp_path):
    store = RolloutStore(tmp_path / "iteration-1")
    store.begin(HEADER, num_shards=2)
    for index, rollouts in enumerate(ROLLOUTS):
        store.write_shard(index, rollouts, {"rollout/length": [3.0 + index, 2.0]})
    return store


def test_what_is_written_is_read_back(store):
    store.finish()
    rows = store.read().to_list()
    assert rows == [
        {"example_id": 4, "kind": "mixed", "input_ids": [1, 2, 3], "labels": [1, -100, 3], "weight": 1.0, "score": 0.0},
        {"example_id": 0, "kind": "mixed", "input_ids": [7], "labels": [7], "weight": 1.0, "score": 0.0},
        {"example_id": 0, "kind": "own", "input_ids": [], "labels": [], "weight": 0.5, "score": -2.5},
        {"example_id": 1, "kind": "mixed", "input_ids": [9, 9], "labels": [9, 8], "weight": 1.0, "score": 0.0},
    ]


def test_datasets_reads_the_folder(store, tmp_path):
    store.finish()
    files = str(store.folder / "*.parquet")
    loaded = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == store.read().to_list()


def test_the_manifest_says_what_was_made_and_how(store):
    assert not store.is_complete
    manifest = store.finish()
    assert manifest == store.manifest and store.is_complete
    assert manifest["header"] == HEADER
    assert manifest["num_rows"] == 4
    assert manifest["stats"] == {"rollout/length": [7.0, 4.0]}
    assert [shard["rows"] for shard in manifest["shards"]] == [3, 1]
    assert len(manifest["sha256"]) == 64


def test_shards_of_an_interrupted_phase_are_kept(store):
    store._shard(1).unlink()
    again = RolloutStore(store.folder)
    again.begin(HEADER, num_shards=2)
    assert again.missing_shards() == [1]


def test_other_settings_are_refused_by_name(store):
    with pytest.raises(RolloutStoreError, match=r"`beta` was 0.2 and is now 0.3.*overwrite_output_dir"):
        RolloutStore(store.folder).begin({**HEADER, "beta": 0.3}, num_shards=2)


def test_a_missing_shard_is_named(store):
    store.finish()
    store._shard(0).unlink()
    with pytest.raises(RolloutStoreError, match="shard-00000.parquet is missing"):
        store.read()


@pytest.mark.parametrize("damage", [lambda content: content[:-5], lambda content: content[:40] + b"x" + content[41:]])
def test_a_truncated_or_altered_shard_is_named(store, damage):
    store.finish()
    path = store._shard(1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RolloutStoreError, match="shard-00001.parquet was truncated or altered"):
        store.read()


def test_shards_without_a_manifest_are_refused(store):
    (store.folder / "manifest.json").unlink()
    with pytest.raises(RolloutStoreError, match="holds 2 shards but no manifest.json"):
        store.begin(HEADER, num_shards=2)


def test_a_shard_of_other_rollouts_is_refused(store, tmp_path):
    other = RolloutStore(tmp_path / "other")
    other.begin({**HEADER, "beta": 0.9}, num_shards=2)
    other.write_shard(1, ROLLOUTS[1], {})
    store._shard(1).write_bytes(other._shard(1).read_bytes())
    with pytest.raises(RolloutStoreError, match="shard-00001.parquet belongs to rollouts with other settings"):
        store.finish()


def test_a_damaged_manifest_is_named(store):
    (store.folder / "manifest.json").write_text('{"complete": tr')
    with pytest.raises(RolloutStoreError, match="manifest.json is not valid JSON"):
        store.read()


def test_no_shard_at_all_is_an_empty_store(tmp_path):
    store = RolloutStore(tmp_path / "iteration-1")
    store.begin(HEADER, num_shards=0)
    store.finish()
    assert len(store.read()) == 0


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_the_manifest_is_plain_json(store):
    store.finish()
    assert json.loads((store.folder / "manifest.json").read_text())["format"] == 1
