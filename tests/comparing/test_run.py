"""A comparison as a user runs one: in processes of its own, from a model folder and a data file, killed and continued."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from trl_exbias.comparing.compute import read_attempts, read_compute

from ..tiny import byte_tokenizer, tiny_model


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs, compared."""
    folder = tmp_path_factory.mktemp("compare")
    tiny_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"{i} + 1?", "completion": f"It is {i + 1}."} for i in range(12)]
    for name, part in (("train", rows[:8]), ("test", rows[8:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    comparison = {
        "name": "Tiny <models>",
        "base": {
            "model_name_or_path": "model",
            "dataset_name": "train.jsonl",
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "use_cpu": True,
        },
        "runs": {"sft": {"method": "sft"}, "bash": {"method": "bash", "beta": 0.5}},
        "evaluate": {
            "suites": ["likelihood", "degeneration"],
            "data": "test.jsonl",
            "horizon": 3,
            "num_samples": 1,
            "max_new_tokens": 6,
            "device": "cpu",
        },
        "equal": "tokens",
        "tolerance": 0.1,
        "output_dir": "out",
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(comparison, sort_keys=False))
    done = call(folder, "compare", "tiny.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def call(folder, *argv) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trl_exbias.cli.main", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_plain_sft_is_trained_until_it_has_consumed_what_bash_did(folder):
    """BASH: 4 + 4 updates, its rollouts on top; SFT reads its gold rows alone, so it gets more updates."""
    sft, bash = (read_compute(folder / "out" / "runs" / name) for name in ("sft", "bash"))
    assert bash.steps == 8 and bash.generated > 0 and sft.generated == 0
    assert sft.steps > 8
    assert abs(sft.tokens / bash.tokens - 1) <= 0.1
    assert sft.host_bytes > 1e8 and sft.wall_seconds > sft.phase_seconds > 0


def test_the_report_says_what_was_measured_and_consumed(folder):
    text = (folder / "out" / "report.md").read_text()
    assert r"# Tiny \<models\>" in text
    bash = read_compute(folder / "out" / "runs" / "bash")
    assert f"| {bash.tokens:,}<br>100.0%" in text
    evaluation = json.loads((folder / "out" / "evaluation" / "evaluation.json").read_text())
    assert list(evaluation["models"]) == ["untrained", "sft", "bash"]
    entropy = evaluation["models"]["sft"]["figures"]["likelihood"]["cross_entropy"]["mean"]
    assert f"{entropy:.3f}" in text
    assert "### Prompt 1" in text and "**bash**" in text
    page = (folder / "out" / "report.html").read_text()
    assert "Tiny &lt;models&gt;" in page and page.count("data:image/svg+xml;base64,") >= 3


def test_called_again_it_trains_and_generates_nothing(folder):
    again = call(folder, "compare", "out")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "sft is trained already" in again.stderr and "bash is trained already" in again.stderr
    assert "0 responses made" in again.stdout
    assert len(read_attempts(folder / "out" / "runs" / "sft")) == 1


def test_other_settings_in_a_folder_that_is_trained_are_refused(folder):
    done = call(folder, "compare", "tiny.yaml", "--learning_rate", "1e-4")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "was trained with other settings: `learning_rate` was 0.001 and is now 0.0001" in done.stderr
    # What was asked is not kept: the comparison is still the one that was trained.
    assert "0.001" in (folder / "out" / "comparison.yaml").read_text()


def test_a_comparison_that_is_told_to_stop_saves_and_goes_on(folder):
    argv = [sys.executable, "-m", "trl_exbias.cli.main", "compare", "tiny.yaml", "--output", "stopped"]
    argv += ["--sft_epochs", "200"]
    running = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = folder / "stopped" / "runs" / "bash" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.is_file() and metrics.read_text().count("\n") > 3):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    said = running.communicate()[0]
    assert running.returncode == 85 and "the same command continues" in said, said[-3000:]
    (attempt,) = read_attempts(metrics.parent)
    assert attempt["status"] == 85 and list(metrics.parent.glob("checkpoint-*"))


def test_finished_runs_are_compared_as_they_are(folder):
    runs = ["plain=out/runs/sft", "out/runs/bash"]
    evaluation = ["--suite", "degeneration", "--data", "test.jsonl", "--max_new_tokens", "6", "--device", "cpu"]
    done = call(folder, "compare", *runs, "--output", "again", *evaluation)
    assert done.returncode == 0, done.stderr[-3000:]
    text = (folder / "again" / "report.md").read_text()
    assert "Run lengths are as declared" in text and "| plain | BASH |" in text


def test_unlike_runs_are_refused_until_it_is_allowed(folder):
    """Nothing is evaluated before they are found to be alike."""
    other = folder / "other"
    shutil.copytree(folder / "out" / "runs" / "bash", other)
    record = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**record, "data": "feed", "seed": 7}))
    done = call(folder, "compare", "out/runs/sft", "other", "--output", "never", "--suite", "degeneration")
    assert done.returncode == 2
    assert "--allow data --allow seed" in done.stderr or "--allow seed --allow data" in done.stderr
    assert not (folder / "never").exists()


def test_a_mistake_in_the_evaluation_is_found_before_anything_is_trained(folder):
    done = call(folder, "compare", "tiny.yaml", "--output", "mistaken", "--evaluate.data", "nowhere.jsonl")
    assert done.returncode == 2 and "`likelihood` cannot be loaded" in done.stderr and "nowhere.jsonl" in done.stderr
    assert not list((folder / "mistaken").rglob("train.log"))
