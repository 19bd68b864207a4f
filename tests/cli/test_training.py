"""The commands as a user runs them: in processes of their own, from a model folder and a data file."""

import json
import subprocess
import sys

import pytest
import yaml

from ..tiny import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tiny_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    rows = [{"question": f"{i} + 1?", "answer": f"It is {i + 1}."} for i in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "train.jsonl"),
        "prompt_template": "{{ question }}",
        "completion_template": "{{ answer }}",
        "as_conversation": True,
        "max_length": 128,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "report_to": "none",
        "use_cpu": True,
        "max_degenerate_rate": 1.0,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def call(*argv, cwd) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, argv)], capture_output=True, text=True, cwd=cwd)


def test_exbias_bash_trains_from_a_recipe_and_saves(folder):
    """Through `accelerate launch`, as `trl sft` goes."""
    argv = ["bash", "--config", "recipe.yaml", "--beta", "0.5", "--output_dir", "bash"]
    done = call("-m", "trl_exbias.cli.main", *argv, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    run = folder / "bash"
    assert json.loads((run / "run.json").read_text())["config"]["beta"] == 0.5
    assert (run / "model.safetensors").is_file()
    assert (run / "rollouts" / "iteration-1" / "manifest.json").is_file()
    card = (run / "README.md").read_text()
    assert "Bridging the Training-Inference Gap" in card


def test_the_output_is_calm_and_names_the_log(folder):
    """No warning of a library, and no bar of what takes a moment; both can be had."""
    # A folder that holds its tokenizer's ids in no config: transformers warns that it writes them there.
    done = call("-m", "trl_exbias.cli.main", "bash", "--config", "recipe.yaml", "--output_dir", "calm", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = done.stdout + done.stderr
    for noise in (
        "were not passed",
        "real_accelerator",
        "[transformers]",
        "examples/s",
        "Loading weights",
        "model shards",
    ):
        assert noise not in shown
    assert "Log: calm/_log.txt (1 warning of a library)" in done.stdout
    assert "The tokenizer has new PAD/BOS/EOS tokens" in (folder / "calm" / "_log.txt").read_text()


def test_sigterm_to_the_command_saves_and_the_same_command_goes_on(folder):
    argv = [sys.executable, "-m", "trl_exbias.cli.main", "bash", "--config", "recipe.yaml", "--sft_epochs", "500"]
    argv += ["--output_dir", "preempted", "--resume_from_checkpoint", "true", "--save_strategy", "no"]
    running = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = []
    for line in running.stdout:
        log.append(line)
        if "'loss'" in line:
            running.terminate()
            break
    log += running.stdout.readlines()
    assert running.wait() == 85, "".join(log)[-3000:]
    assert "Stopped by SIGTERM; step " in "".join(log)
    (saved,) = (folder / "preempted").glob("checkpoint-*")
    step = int(saved.name.split("-")[1])
    assert 0 < step < 1000
    again = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in again.stdout:
        if "'loss'" in line:
            again.terminate()
            break
    again.stdout.read()
    assert again.wait() == 85
    logs = map(json.loads, (folder / "preempted" / "metrics.jsonl").read_text().splitlines())
    steps = [entry["step"] for entry in logs if "loss" in entry]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] > step, "continued where the first was stopped"


def test_the_module_spelled_out_is_the_same_thing_and_refuses_a_used_folder(folder):
    argv = ["-m", "trl_exbias.cli.rac", "--config", "recipe.yaml", "--max_new_tokens", "8", "--output_dir", "rac"]
    done = call(*argv, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    again = call(*argv, cwd=folder)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr and "Traceback" not in again.stderr
    resumed = call(*argv, "--resume_from_checkpoint", "true", cwd=folder)
    assert resumed.returncode == 0, resumed.stderr[-3000:]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--beta", "7"], "`beta` must be a probability"),
        (["--max_length", "16"], "no response token within `max_length=16`"),
        (["--prompt_template", "{{ problem }}"], "`prompt_template` uses ['problem']"),
    ],
)
def test_a_users_mistake_is_one_message_without_a_traceback(folder, argv, message):
    done = call("-m", "trl_exbias.cli.bash", "--config", "recipe.yaml", "--output_dir", "mistake", *argv, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "mistake").exists()


def test_an_old_run_stays_until_everything_else_has_been_checked(folder):
    old = folder / "old"
    (old / "checkpoint-7").mkdir(parents=True)
    (old / "run.json").write_text("{}")
    argv = [
        "-m",
        "trl_exbias.cli.bash",
        "--config",
        "recipe.yaml",
        "--output_dir",
        "old",
        "--overwrite_output_dir",
        "true",
    ]
    for mistake in (
        ["--dataset_name", "tain.jsonl"],
        ["--dataset_train_split", "tain"],
        ["--model_name_or_path", "./modle"],
    ):
        done = call(*argv, *mistake, cwd=folder)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
        assert mistake[1] in done.stderr
        assert (old / "checkpoint-7").is_dir()
    assert call(*argv, cwd=folder).returncode == 0
    assert not (old / "checkpoint-7").exists()
