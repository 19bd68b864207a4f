"""A tiny model, data and a recipe of them, and the command that looks at it."""

import json

import pytest
import yaml

from trl_exbias.cli.main import main

from ...tiny import VOCAB_SIZE, byte_tokenizer, tiny_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    for name, size in (("model", VOCAB_SIZE + 8), ("other", 2 * VOCAB_SIZE)):
        tiny_model(vocab_size=size).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    stranger = byte_tokenizer()
    stranger.add_tokens(["zebra"])
    stranger.save_pretrained(folder / "other")
    rows = [{"question": f"{i} + 1?", "answer": f"It is {i + 1}."} for i in range(100)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "stories.jsonl").write_text("".join(json.dumps({"text": "Once. " * (20 + i)}) + "\n" for i in range(10)))
    return folder


@pytest.fixture
def recipe(folder, tmp_path):
    def write(**changes):
        content = {
            "model_name_or_path": str(folder / "model"),
            "dataset_name": str(folder / "train.jsonl"),
            "prompt_template": "{{ question }}",
            "completion_template": "{{ answer }}",
            "as_conversation": True,
            "max_length": 128,
            "per_device_train_batch_size": 4,
            "beta": 0.2,
            "bf16": False,
            "output_dir": str(tmp_path / "run"),
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return str(path)

    return write


@pytest.fixture
def check(capsys):
    """Runs the command; returns its exit status and what it printed, as JSON."""

    def call(*argv):
        status = main(["check", *map(str, argv), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return call


def messages(found, level="errors"):
    return " | ".join(f"{finding['subject']}: {finding['message']}" for finding in found[level])
