"""A method of a user's own, from one file in an empty folder: training, check, plan and comparison, by path and by entry point."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trl_exbias.run.run_directory import METRICS_FILE

from .tiny import byte_tokenizer, tiny_model


EXAMPLE = Path(__file__).parents[1] / "examples" / "own_method.py"
METHOD = "halfway:HalfwayTrainer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(EXAMPLE, folder / "halfway.py")
    tiny_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"{i} + 1?", "completion": f"It is {i + 1}."} for i in range(12)]
    for name, part in (("train", rows[:8]), ("test", rows[8:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    recipe = {
        "model_name_or_path": "model",
        "dataset_name": "train.jsonl",
        "kept": 0.25,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "num_iterations": 2,
        "output_dir": "out",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def exbias(folder: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from trl_exbias.cli.main import main; raise SystemExit(main())", *argv]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_the_example_is_under_sixty_lines_and_touches_one_file():
    assert len(EXAMPLE.read_text().splitlines()) < 60


def test_check_plans_it(folder):
    done = exbias(folder, "check", "recipe.yaml", "--method", METHOD, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    phases = json.loads(done.stdout)["plan"]["phases"]
    assert [phase["rollout_rows"] for phase in phases] == [0, 8, 8]
    assert all(phase["rollout_tokens"] > 0 for phase in phases[1:])


def test_its_own_settings_are_checked(folder):
    done = exbias(folder, "check", "recipe.yaml", "--method", METHOD, "--kept", "2", "--kapt", "1")
    assert done.returncode == 2
    assert "`kept` must be between 0 and 1, got 2.0." in done.stdout
    assert "`kapt` is not a known key. Did you mean `kept`?" in done.stdout


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("halfwey:HalfwayTrainer", "there is no module `halfwey`"),
        ("halfway:HalfTrainer", "`halfway` has no `HalfTrainer`"),
        ("bsh", "There is no method `bsh`. Did you mean `bash`?"),
    ],
)
def test_a_method_that_is_not_there_is_a_message(folder, method, expected):
    done = exbias(folder, "train", "--method", method, "--config", "recipe.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and expected in done.stderr


def test_an_entry_point_gives_it_a_command_of_its_own(folder, tmp_path):
    packaged = tmp_path / "halfway_method-1.0.dist-info"
    packaged.mkdir()
    (packaged / "METADATA").write_text("Metadata-Version: 2.1\nName: halfway-method\nVersion: 1.0\n")
    (packaged / "entry_points.txt").write_text(f"[trl_exbias.methods]\nhalfway = {METHOD}\n")
    path = os.pathsep.join([str(tmp_path), str(folder), os.environ.get("PYTHONPATH", "")])
    assert "halfway" in exbias(tmp_path, "--help", PYTHONPATH=path).stdout
    done = exbias(folder, "halfway", "--config", "recipe.yaml", "--output_dir", "trained", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr[-3000:]
    logged = [json.loads(line) for line in (folder / "trained" / METRICS_FILE).read_text().splitlines()]
    assert any("loss/halfway" in entry for entry in logged)


@pytest.mark.slow
def test_it_is_compared(folder):
    comparison = {
        "name": "Halfway",
        "base": {
            "model_name_or_path": "model",
            "dataset_name": "train.jsonl",
            "per_device_train_batch_size": 2,
            "save_strategy": "no",
            "use_cpu": True,
        },
        "runs": {"sft": {"method": "sft"}, "mine": {"method": METHOD, "kept": 0.25}},
        "evaluate": {"suites": ["likelihood"], "data": "test.jsonl", "horizon": 3, "num_samples": 1, "device": "cpu"},
        "equal": "tokens",
        "tolerance": 0.2,
        "output_dir": "compared",
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(comparison, sort_keys=False))
    done = exbias(folder, "compare", "compare.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mine" in (folder / "compared" / "report.md").read_text()
