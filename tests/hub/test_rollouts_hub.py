"""Rollouts on a hub that runs here: what arrives is the shards, and a card by which `datasets` loads them."""

import base64
import json
import shutil

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi, constants
from werkzeug import Request, Response

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.cli.main import main
from trl_exbias.hub.rollouts_hub import push_rollouts, rollouts_card
from trl_exbias.run.rollout_store import RolloutStore

from ..loop.runs import config, trainer
from ..tiny import conversations


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bash | run {{ x }}"
    args = config(BASHConfig, folder, beta=0.5, num_iterations=2, temperature=0.7, hub_token="hf_secret")
    trainer(BASHTrainer, args, conversations(8)).train()
    return folder


@pytest.fixture
def hub(httpserver, monkeypatch):
    """As much of the hub's protocol as a commit needs; `hub.files` is what was committed, `hub.made` how."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    httpserver.files, httpserver.made = {}, []

    def create(request: Request) -> Response:
        httpserver.made.append(request.json)
        assert request.headers["authorization"] == "Bearer a-token"
        return answer({"url": httpserver.url_for("/datasets/me/rollouts"), "id": "me/rollouts", "name": "me/rollouts"})

    def validate(request: Request) -> Response:
        assert request.json["repoType"] == "dataset" and request.json["content"].startswith("---\n")
        return answer({"errors": [], "warnings": []})

    def preupload(request: Request) -> Response:
        return answer({"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in request.json["files"]]})

    def commit(request: Request) -> Response:
        for line in request.get_data().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                httpserver.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return answer({"commitUrl": httpserver.url_for("/datasets/me/rollouts/commit/1"), "commitOid": "1" * 40})

    def answer(body: dict) -> Response:
        return Response(json.dumps(body), content_type="application/json")

    httpserver.expect_request("/api/repos/create", method="POST").respond_with_handler(create)
    httpserver.expect_request("/api/validate-yaml", method="POST").respond_with_handler(validate)
    httpserver.expect_request("/api/datasets/me/rollouts/preupload/main", method="POST").respond_with_handler(preupload)
    httpserver.expect_request("/api/datasets/me/rollouts/commit/main", method="POST").respond_with_handler(commit)
    return httpserver


def test_what_is_pushed_loads_as_it_was_written(run_dir, hub, tmp_path):
    api = HfApi(endpoint=hub.url_for("").rstrip("/"), token="a-token")
    address = push_rollouts(run_dir, "me/rollouts", license="apache-2.0", api=api)
    assert address.endswith("/datasets/me/rollouts")
    assert hub.made[0]["visibility"] == "private" and hub.made[0]["type"] == "dataset"
    assert sorted(hub.files) == [
        "README.md",
        *(f"iteration-{i}/{name}" for i in (1, 2) for name in ("manifest.json", "shard-00000.parquet")),
    ]
    for name, content in hub.files.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for iteration in (1, 2):
        loaded = load_dataset(
            str(tmp_path / "clone"), f"iteration-{iteration}", split="train", cache_dir=tmp_path / "c"
        )
        written = RolloutStore(run_dir / "rollouts" / f"iteration-{iteration}").read()
        assert loaded.to_list() == written.to_list() and len(loaded) == 8
    default = load_dataset(str(tmp_path / "clone"), split="train", cache_dir=tmp_path / "c")
    assert default.to_list() == RolloutStore(run_dir / "rollouts" / "iteration-1").read().to_list()
    assert DatasetCard.load(tmp_path / "clone" / "README.md").data.license == "apache-2.0"


def test_the_command_pushes_to_the_hub_one_is_logged_in_to(run_dir, hub, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url_for("").rstrip("/"))
    monkeypatch.setenv("HF_TOKEN", "a-token")
    assert main(["rollouts", "push", str(run_dir), "me/rollouts", "--license", "mit"]) == 0
    assert capsys.readouterr().out.strip().endswith("/datasets/me/rollouts")
    assert len(hub.files) == 5 and hub.made[0]["visibility"] == "private"


def test_the_card_says_what_they_are(run_dir):
    card = rollouts_card(run_dir)
    store = RolloutStore(run_dir / "rollouts" / "iteration-2")
    header, stats = store.manifest["header"], store.manifest["stats"]
    assert card.data.license == "unknown" and card.data.size_categories == "n<1K"
    assert {"trl-exbias", "rollouts", "bash"} == set(card.data.tags)
    assert [entry["config_name"] for entry in card.data.to_dict()["configs"]] == ["iteration-1", "iteration-2"]
    assert f"| iteration-2 | 8 | {header['policy_step']} | {header['policy']} |" in card.text
    assert all(f"| `{column}` |" in card.text for column in store.read().column_names)
    assert "- temperature: 0.7\n" in card.text and "- beta: 0.5\n" in card.text and "**BASH**" in card.text
    assert f"{stats['rollout/length'][0] / stats['rollout/length'][1]:.4g}" in card.text
    assert "hf_secret" not in card.content and str(run_dir.parent) not in card.content
    assert card.text.lstrip().startswith("# BASH rollouts: bash \\| run {{ x }}\n")


def test_damaged_and_absent_rollouts_are_refused_before_anything_is_sent(run_dir, tmp_path):
    with pytest.raises(ValueError, match="holds no complete rollouts"):
        push_rollouts(tmp_path, "me/rollouts", api=HfApi(endpoint="http://localhost:1"))
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    shard = copy / "rollouts" / "iteration-2" / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="truncated or altered"):
        push_rollouts(copy, "me/rollouts", api=HfApi(endpoint="http://localhost:1"))


def test_an_iteration_that_is_being_made_is_left_out(run_dir, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    manifest = copy / "rollouts" / "iteration-2" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "complete": False}))
    card = rollouts_card(copy)
    assert "iteration-2" not in card.content and "iteration-2 is left out" in caplog.text
