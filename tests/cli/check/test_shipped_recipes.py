"""`exbias check` of every recipe that is shipped, the method that a recipe is of, and how fast the command is."""

import json
import re
import resource
import subprocess
import sys

import pytest

from trl_exbias.cli.check import method_of
from trl_exbias.cli.main import main
from trl_exbias.settings.recipe import RecipeError
from trl_exbias.settings.recipes import names


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
