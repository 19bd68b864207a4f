"""`exbias check` as a user runs it, on a recipe of their own: what is wrong, and what the run will take."""

import json
import time

import pytest

from trl_exbias.cli.main import main

from ...families import family
from ...tiny import VOCAB_SIZE, byte_tokenizer, tiny_model
from .conftest import messages


def test_a_good_recipe_has_no_findings_and_a_whole_plan(check, recipe, tmp_path):
    status, found = check(recipe())
    assert (status, found["errors"], found["warnings"], found["method"]) == (0, [], [], "bash")
    plan = found["plan"]
    assert [phase["name"] for phase in plan["phases"]] == ["SFT", "iteration 1"]
    assert [phase["steps"] for phase in plan["phases"]] == [25, 25]
    assert [memory["phase"] for memory in plan["memory_bytes"]] == ["SFT", "rollouts 1", "iteration 1"]
    assert plan["disk_bytes"] and plan["free_disk_bytes"] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (
            {"prompt": None, "completion": "b"},
            None,
            "data: 1 of the first 64 training rows have a null in `prompt` (rows 5)",
        ),
        ({"prompt": "a", "completion": ""}, None, "have an empty response in `completion` (rows 5)"),
        (
            None,
            {"prompt": "a", "completion": None},
            "data: 1 of 6 evaluation rows have an empty response in `completion`",
        ),
        ({"prompt": "a", "completion": "zebra"}, None, "The tokens are `zebra`"),
    ],
)
def test_the_rows_are_checked_as_training_checks_them(check, recipe, folder, tmp_path, train, test, expected):
    good = {"prompt": "a", "completion": "b"}
    for name, rows in (("train", [good] * 5 + [train or good] + [good] * 94), ("test", [good] * 5 + [test or good])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = folder / "model"
    if "zebra" in expected:
        model = tmp_path / "model"
        tiny_model().save_pretrained(model)
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens(["zebra"])
        tokenizer.save_pretrained(model)
    templates = dict.fromkeys(("prompt_template", "completion_template", "as_conversation"))
    path = recipe(model_name_or_path=str(model), dataset_name=str(tmp_path), eval_strategy="epoch", **templates)
    status, found = check(path)
    assert status == 2 and expected in messages(found), found["errors"]


def test_every_kind_of_mistake_is_reported_at_once(check, recipe, folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    path = recipe(
        bheta=0.1, loss_type="nl", num_iterations=-1, top_p=2, prompt_template="{{ problem }}", eos_token="<none>"
    )
    status, found = check(path, "--learning_rat", "1", "--warmup_steps", "many", "--accelerate_config", "zero9")
    errors = messages(found)
    assert status == 2
    for expected in (
        "keys: `bheta` is not a known key. Did you mean `beta`?",
        "keys: `learning_rat` is not a known key. Did you mean `learning_rate`?",
        "values: `loss_type: nl` is not one of nll",
        "values: argument --warmup_steps",
        "values: `num_iterations` must be 0 or more",
        "values: `top_p` must be in (0, 1]",
        "output: `output_dir=",
        "data: `prompt_template` uses ['problem']",
        "placement: `zero9` is neither a file nor one of",
    ):
        assert expected in errors, (expected, errors)
    assert (tmp_path / "run" / "run.json").is_file()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_length": 20}, "data: 64 of the first 64 rows have no response token within `max_length=20`"),
        ({"eos_token": "<none>"}, "tokenizer: `eos_token: <none>` is not a token of the tokenizer"),
        ({"chat_template_path": "/nowhere/template"}, "tokenizer: `chat_template_path: /nowhere/template` is neither"),
        ({"dataset_name": "/nowhere/train.jsonl"}, "data: `/nowhere/train.jsonl` cannot be read"),
        ({"dataset_train_split": "tain"}, "train.jsonl` cannot be read: Bad split: tain"),
        ({"dataset_streaming": True}, "data: streamed data cannot be rolled out"),
        ({"model_name_or_path": "/nowhere/model"}, "model: `model_name_or_path: /nowhere/model` cannot be read"),
        ({"model_name_or_path": None}, "model: `model_name_or_path` is missing"),
        ({"as_conversation": None, "prompt_template": None, "completion_template": None}, "data: The training dataset"),
        ({"output_dir": f"{__file__}/run"}, f"output: `output_dir: {__file__}/run` cannot be made"),
        ({"use_peft": True, "lora_target_modules": ["none_such"]}, "model: Target modules"),
        ({"max_length": 128, "bf16": True, "fp16": True}, "values: At most one of fp16 and bf16"),
    ],
)
def test_what_would_stop_the_run_is_an_error(check, recipe, changes, expected):
    status, found = check(recipe(**changes))
    assert status == 2 and expected in messages(found), messages(found)


def test_max_steps_that_ends_before_the_rollouts_is_a_warning(check, recipe):
    status, found = check(recipe(max_steps=2))
    assert status == 0
    assert "steps: `max_steps=2` ends the run in its SFT phase" in messages(found, "warnings")


def test_what_trl_takes_is_no_error_where_nothing_rolls_out(check, recipe):
    status, found = check(recipe(num_iterations=0, packing=True, max_steps=2, dataset_streaming=True))
    assert (status, messages(found), found["plan"]["data"]["rows"]) == (0, "", None)


def test_rac_needs_a_reference_answer_to_show(check, recipe, folder):
    status, found = check(recipe(beta=None, max_new_tokens=8))
    assert (status, found["method"]) == (0, "rac")
    text = {
        "as_conversation": None,
        "prompt_template": None,
        "completion_template": None,
        "text_template": "{{ text }}",
    }
    status, found = check(recipe(beta=None, max_new_tokens=8, dataset_name=str(folder / "stories.jsonl"), **text))
    assert status == 2 and "RAC needs data in the form prompt-completion or messages" in messages(found)


@pytest.mark.parametrize("name", ["mamba", "qwen3_5"])
def test_a_recurrent_model_is_planned_with_rows_of_their_own(check, recipe, tmp_path, name):
    """Its branches cannot share a context, and it may have no attention whose memory could be counted."""
    family(name).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    changes = {"model_name_or_path": str(tmp_path / "model"), "as_conversation": None}
    status, found = check(recipe(**changes))
    assert (status, found["errors"], found["warnings"]) == (0, [], [])
    _, plain = check(recipe(as_conversation=None))
    sft, joint = found["plan"]["phases"]
    assert joint["tokens"] > plain["plan"]["phases"][1]["tokens"]
    assert sft["tokens"] == plain["plan"]["phases"][0]["tokens"]


def test_what_a_hub_would_say_is_a_warning_and_strict_makes_it_a_failure(check, recipe):
    path = recipe(model_name_or_path="someone/model", dataset_name="someone/data")
    started = time.monotonic()
    status, found = check(path)
    assert time.monotonic() - started < 30
    assert (status, found["errors"]) == (0, [])
    assert {finding["subject"] for finding in found["warnings"]} == {"model", "tokenizer", "data"}
    assert check(path, "--strict")[0] == 1


def test_the_plan_is_made_for_the_devices_that_are_named(check, recipe):
    _, one = check(recipe())
    _, eight = check(recipe(), "--accelerate_config", "zero3", "--num_processes", "8", "--gpu_memory_gib", "80")
    assert one["plan"]["placement"]["sharding"] == "none"
    assert eight["plan"]["placement"]["sharding"] == "zero3" and eight["plan"]["placement"]["num_processes"] == 8
    assert eight["plan"]["phases"][0]["steps"] == 4  # 100 rows, 4 on each of 8
    optimizers = [plan["plan"]["memory_bytes"][0]["optimizer"] for plan in (one, eight)]
    assert optimizers[1] == pytest.approx(optimizers[0] / 8 * 1.5, rel=0.01)  # float32 weights besides the states


def test_memory_that_does_not_fit_is_a_warning(check, recipe):
    status, found = check(recipe(), "--gpu_memory_gib", "0.001")
    assert status == 0 and "GiB on each device" in messages(found, "warnings")


def test_the_text_says_the_same(recipe, capsys):
    assert main(["check", recipe(bheta=1)]) == 2
    out = capsys.readouterr().out
    assert "`bheta` is not a known key" in out and "GiB on each device" in out and "1 error, 0 warnings" in out


def test_a_verifier_that_accepts_no_gold_answer_is_an_error(check, recipe):
    status, found = check(recipe(beta=None, verifier="gsm8k"), "--method", "verified")
    assert status == 2 and "`verifier='gsm8k'` accepts 0 of the first" in messages(found)
    own = {"beta": None, "verifier": "number", "num_samples": 3, "num_kept": 2, "max_new_tokens": 8}
    status, found = check(recipe(**own), "--method", "verified")
    assert (status, found["errors"]) == (0, [])
    joint = found["plan"]["phases"][1]
    assert (joint["rollout_rows"], joint["rollout_tokens"]) == (100, 100 * 3 * 8)


def test_soft_corrections_have_a_head_of_their_own_and_labels_on_disk(check, recipe):
    own = {"beta": None, "max_new_tokens": 8, "soft_labels": True}
    _, whole = check(recipe(**own), "--method", "rac")
    _, top = check(recipe(**own, teacher_top_k=4), "--method", "rac")
    labels = [found["plan"]["disk_bytes"]["soft labels"] for found in (whole, top)]
    assert labels[0] == 800 * 32 * 4 and labels[1] == 800 * (8 * 4 + 4)
    heads = [found["plan"]["memory_bytes"][-1].get("teacher", 0) for found in (whole, top)]
    assert heads[0] == (VOCAB_SIZE + 8) * 32 * 4 and not heads[1]
