"""`exbias check` as a user runs it: on a folder, a file and a recipe, and on every recipe that is shipped."""

import json
import re
import resource
import subprocess
import sys
import time

import pytest
import yaml
from transformers import AutoTokenizer

from trl_exbias.cli.check import method_of
from trl_exbias.cli.main import main
from trl_exbias.settings.recipe import RecipeError
from trl_exbias.settings.recipes import names

from ..families import family
from ..methods.dad_dagger.serving import TeacherServer
from ..ports import free_port
from ..tiny import VOCAB_SIZE, byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
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


def dad(folder, **changes):
    return {
        **dict.fromkeys(("beta", "as_conversation", "prompt_template", "completion_template")),
        "dataset_name": str(folder / "stories.jsonl"),
        "context_length": 32,
        "rollout_length": 8,
        "teacher_model_name_or_path": str(folder / "model"),
        **changes,
    }


def test_a_teacher_must_be_there_and_speak_the_students_tokens(check, recipe, folder):
    status, found = check(recipe(**dad(folder)))
    assert (status, found["method"], found["errors"]) == (0, "dad-dagger", [])
    assert {"soft labels 1", "soft labels 2"} <= {memory["phase"] for memory in found["plan"]["memory_bytes"]}
    status, found = check(recipe(**dad(folder, teacher_model_name_or_path=str(folder / "other"))))
    assert status == 2 and "teacher: Student and teacher need the same tokenizer" in messages(found)
    status, found = check(recipe(**dad(folder, teacher_model_name_or_path=None)))
    assert status == 2 and "teacher: `alpha=0.5` needs a teacher" in messages(found)
    status, found = check(recipe(**dad(folder, context_length=5000)))
    assert status == 2 and "none of the first 10 documents has the 5008 tokens" in messages(found)


def served(folder, address, **changes):
    own = {"teacher_model_name_or_path": None, "teacher_server_base_url": address, "teacher_top_k": 4}
    return dad(folder, **{**own, **changes})


def test_a_served_teacher_is_asked_and_its_labels_are_planned(check, recipe, folder, httpserver):
    teacher = TeacherServer(
        httpserver, tiny_model(vocab_size=VOCAB_SIZE + 8), AutoTokenizer.from_pretrained(folder / "model")
    )
    status, found = check(recipe(**served(folder, teacher.url)))
    assert (status, messages(found), found["warnings"]) == (0, "", [])
    assert not {phase["phase"] for phase in found["plan"]["memory_bytes"] if phase["phase"].startswith("soft labels")}
    _, here = check(recipe(**dad(folder, teacher_top_k=4)))
    assert found["plan"]["disk_bytes"]["soft labels"] == here["plan"]["disk_bytes"]["soft labels"] > 0
    read, read_here = ([phase["label_tokens"] for phase in of["plan"]["phases"]] for of in (found, here))
    assert read == read_here and all(read)
    status, found = check(recipe(**served(folder, teacher.url, teacher_model_name_or_path="other")))
    assert status == 2 and "teacher: The teacher's server at" in messages(found) and "serve 'other'" in messages(found)
    teacher.served = [{"id": "teacher", "max_model_len": 40}]
    status, found = check(recipe(**served(folder, teacher.url)))
    assert status == 2 and "the teacher has 39 positions" in messages(found)
    status, found = check(recipe(**served(folder, f"http://127.0.0.1:{free_port()}")))
    assert status == 0 and "does not answer from here" in messages(found, "warnings")


def test_several_teachers_are_each_looked_at(check, recipe, folder, tmp_path):
    rows = [{"text": "Once. " * (20 + i), "teacher": ("one", "two")[i % 2]} for i in range(10)]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_model(vocab_size=VOCAB_SIZE + 8, hidden_size=64).save_pretrained(tmp_path / "large")
    byte_tokenizer().save_pretrained(tmp_path / "large")
    own = {"dataset_name": str(tmp_path / "named.jsonl"), "teacher_model_name_or_path": None, "teacher_top_k": 4}

    def several(teachers, **changes):
        return check(recipe(**dad(folder, **{**own, "teachers": teachers, **changes})))

    teachers = {"one": str(folder / "model"), "two": str(tmp_path / "large")}
    for changes in ({}, {"text_template": "{{ text }}"}):
        status, found = several(teachers, **changes)
        assert (status, messages(found)) == (0, "")
    planned = {memory["phase"]: memory for memory in found["plan"]["memory_bytes"]}["soft labels 1"]["teacher"]
    _, alone = check(recipe(**dad(folder, teacher_top_k=4, teacher_model_name_or_path=teachers["two"])))
    assert planned == {memory["phase"]: memory for memory in alone["plan"]["memory_bytes"]}["soft labels 1"]["teacher"]
    status, found = several({"one": str(folder / "model"), "too": str(folder / "other")})
    assert status == 2 and "data: Row 1 of the training dataset names the teacher 'two'" in messages(found)
    assert "teacher: Student and teacher need the same tokenizer" in messages(found)
    status, found = several({"one": str(folder / "model"), "two": str(folder / "nowhere")})
    assert status == 2 and f"`teachers: {{two: {folder / 'nowhere'}}}` cannot be read" in messages(found)


def test_memory_is_planned_for_the_teacher_as_it_is_loaded(check, recipe, folder):
    def labelling(**kwargs):
        status, found = check(recipe(**dad(folder, teacher_model_init_kwargs=kwargs or None)))
        assert status == 0, messages(found)
        phases = {memory["phase"]: memory for memory in found["plan"]["memory_bytes"]}
        return phases.get("soft labels 1", {}).get("teacher"), found["plan"]["disk_bytes"]["soft labels"]

    whole, labels = labelling()
    packed, _ = labelling(quantization_config={"load_in_4bit": True})
    assert 0 < packed < whole
    assert labelling(device_map="cpu") == (None, labels)


def test_the_output_of_frozen_layers_is_planned_where_it_is_kept(check, recipe, folder, monkeypatch):
    frozen = {"trainable_modules": ["model.layers.1", "model.norm"], "num_train_epochs": 2}

    def kept(**changes):
        status, found = check(recipe(**dad(folder, **changes)))
        assert status == 0, messages(found)
        return found["plan"]["disk_bytes"].get("frozen layers' output"), found

    size, found = kept(**frozen)
    rows, rolled_out = found["plan"]["data"]["rows"], sum(phase["rollout_tokens"] for phase in found["plan"]["phases"])
    assert size == (rows * (32 + 8) + rolled_out) * 32 * 4
    for changes in ({}, {**frozen, "cache_trunk": False}, {**frozen, "num_iterations": 1, "num_train_epochs": 1}):
        assert kept(**changes)[0] is None
    monkeypatch.setattr("trl_exbias.planning.look.free_bytes", lambda folder: 2 * size - 1)
    size, found = kept(**frozen)
    assert size is None and "every step will run the frozen layers: their output would take" in str(found["warnings"])


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


def test_a_mixture_of_experts_beside_a_teacher_is_told_what_to_set(check, recipe, folder, tmp_path):
    family("qwen3_moe").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    options = dad(folder, model_name_or_path=str(tmp_path / "model"))
    status, found = check(recipe(**options))
    assert status == 2 and "set `router_aux_loss_coef=0` (it is 0.001)" in messages(found)
    _, found = check(recipe(**options, router_aux_loss_coef=0.0))
    assert "router_aux_loss_coef" not in messages(found)


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


# Which method


@pytest.mark.parametrize(
    ("place", "content", "method"),
    [
        ("mine.yaml", {"beta": 0.1}, "bash"),
        ("mine.yaml", {"max_new_tokens": 8}, "rac"),
        ("mine.yaml", {"alpha": 0.1}, "dad-dagger"),
        ("bash/mine.yaml", {"alpha": 0.1}, "dad-dagger"),
        ("rac/mine.yaml", {"max_length": 8}, "rac"),
        ("dad-dagger/mine.yaml", {"bheta": 8}, "dad-dagger"),
        ("bash/mine.yaml", {"alpha": 0.1, "correction_template": "qa"}, "bash"),
        ("scheduled-sampling/mine.yaml", {"beta": 0.1}, "scheduled-sampling"),
        ("mine.yaml", {"spin_lambda": 0.1, "max_new_tokens": 8}, "spin"),
        ("spin/mine.yaml", {"max_new_tokens": 8}, "spin"),
        ("mine.yaml", {"verifier": "math", "max_new_tokens": 8}, "verified"),
    ],
)
def test_the_method_is_read_from_the_keys_then_from_the_folder(tmp_path, place, content, method):
    assert method_of(tmp_path / place, content) == method


def test_a_recipe_of_no_method_asks_for_one(tmp_path, capsys):
    with pytest.raises(RecipeError, match="no key of a single method.*--method"):
        method_of(tmp_path / "mine.yaml", {"max_length": 8})
    assert main(["check", str(tmp_path / "nowhere.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


# Shipped recipes


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_is_without_errors_where_the_hub_is_away(check, name, tmp_path):
    status, found = check(name, "--output_dir", tmp_path / "run")
    assert (status, found["errors"], found["method"]) == (0, [], name.split("/")[0])
    away = re.compile("the hub does not answer|`teacher_server_base_url: .*` does not answer from here")
    assert all(away.search(finding["message"]) for finding in found["warnings"]), found["warnings"]


# Speed


def cpu_seconds(*argv, cwd) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *argv], check=True, capture_output=True, cwd=cwd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_check_takes_seconds_and_hardly_more_than_its_imports(recipe, tmp_path):
    imports = "import torch, datasets; from transformers import AutoModelForCausalLM, AutoTokenizer; from trl import SFTConfig"
    taken = cpu_seconds("-m", "trl_exbias.cli.main", "check", recipe(), cwd=tmp_path)
    # Where reading the libraries alone takes the five seconds, on a machine with other things to do.
    allowed = max(5.0, 1.1 * cpu_seconds("-c", imports, cwd=tmp_path))
    assert taken < allowed, (taken, allowed)


def test_shipped_recipes_are_checked_without_trainers_peft_or_sklearn(folder, tmp_path):
    code = (
        "import sys; from trl_exbias.cli.main import main\n"
        "stand_in = sys.argv[1:3] + ['--output_dir', 'run', '--dataset_name']\n"
        "bash = ['check', 'bash/pythia-1b_tldr', *stand_in, 'pairs.jsonl', '--max_length', '64']\n"
        "teacher = ['--teacher_model_name_or_path', sys.argv[2], '--context_length', '32', '--eval_strategy', 'no']\n"
        "stories = [*stand_in, 'stories.jsonl', '--dataset_train_split', 'train', *teacher]\n"
        "assert main(bash) == main(['check', 'dad-dagger/pythia-160m_tinystories', *stories]) == 0\n"
        "heavy = {'trl.trainer.sft_trainer', 'trl.trainer.utils', 'transformers.trainer', 'peft', 'sklearn', 'deepspeed'}\n"
        "assert not heavy & {*sys.modules}, heavy & {*sys.modules}\n"
        # PEFT is there where it is asked for, in the same process.
        "assert main([*bash, '--use_peft', 'true', '--lora_target_modules', 'all-linear']) == 0 and 'peft' in sys.modules\n"
        "import peft; from transformers.trainer_utils import _is_peft_model\n"
        "assert _is_peft_model(peft.PeftModel.__new__(peft.PeftModel)) and not _is_peft_model(None)\n"
    )
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "How?", "completion": " So."}) + "\n")
    (tmp_path / "stories.jsonl").write_text((folder / "stories.jsonl").read_text())
    argv = [sys.executable, "-c", code, "--model_name_or_path", str(folder / "model")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr


def test_mistyped_keys_are_answered_before_anything_is_imported(recipe, tmp_path):
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise SystemExit(7)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from trl_exbias.cli.main import main; main(sys.argv[1:])"
    )
    path = recipe(learning_rat=1)
    done = subprocess.run([sys.executable, "-c", code, "check", path], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 7
    assert "`learning_rat` is not a known key. Did you mean `learning_rate`?" in done.stdout
