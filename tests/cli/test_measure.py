"""`exbias measure` and `exbias dad-dagger` as a user runs them."""

import json

import pytest
import yaml
from PIL import Image

from trl_exbias.cli.main import main

from ..tiny import byte_tokenizer, tiny_model
from .test_training import call


TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measure")
    for name, seed in (("student", 0), ("teacher", 7)):
        tiny_model(seed=seed).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    (folder / "story.txt").write_text(TEXT)
    pairs = [{"q": f"{i}?", "a": f"It is {i}."} for i in range(5)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return folder


def test_several_models_give_one_report_one_table_and_one_plot(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    argv = ["measure", "student", "big=teacher", "--data", "story.txt", "--context_length", "16", "--horizon", "4"]
    argv += ["--num_samples", "2", "--max_starts", "8", "--teacher", "teacher", "--device", "cpu"]
    assert main([*argv, "--output", "report.json", "--plot", "gap.png"]) == 0
    printed = capsys.readouterr().out
    assert "student" in printed and "big" in printed and "it cannot show a cure" in printed
    assert printed.index("KL, own states") < printed.index("KL, true states") < printed.index("free-running")
    report = json.loads((folder / "report.json").read_text())["models"]
    assert report["big"]["exposure_bias"]["excess_error"] == pytest.approx([0] * 4, abs=1e-5)
    student = report["student"]["exposure_bias"]
    assert len(student["gap"]) == len(student["kl_own"]) == 4 and student["totals"]["kl_own"]["mean"] > 0.01
    differences = [own - true for own, true in zip(student["kl_own"], student["kl_gold"], strict=True)]
    assert student["excess_error"] == pytest.approx(differences, abs=1e-6)
    assert report["big"]["exposure_bias"]["totals"]["kl_own"]["mean"] == pytest.approx(0, abs=1e-5)
    assert report["student"]["exposure_bias"]["gap"][0] == 0
    found = report["student"]["perplexity"]
    assert found["bits_per_byte"] == pytest.approx(found["bits"] / report["student"]["bytes_per_token"])
    with Image.open(folder / "gap.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height


def test_prompt_completion_data_are_measured_from_the_prompt(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    argv = ["measure", "student", "--data", "pairs.jsonl", "--prompt_template", "{{ q }}", "--completion_template"]
    argv += ["{{ a }}", "--as_conversation", "--horizon", "3", "--num_samples", "1", "--device", "cpu"]
    assert main([*argv, "--output", "pairs.json"]) == 0
    report = json.loads((folder / "pairs.json").read_text())["models"]["student"]
    assert report["exposure_bias"]["num_starts"] == 5 and "perplexity" not in report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context_length", "4000"], "No document has the 4010 tokens"),
        (["--text_field", "story"], "no column `story`"),
    ],
)
def test_mistakes_get_one_line(folder, capsys, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    assert main(["measure", "student", "--data", "story.txt", "--device", "cpu", *options]) == 2
    assert message in capsys.readouterr().err


def test_exbias_dad_dagger_trains_from_a_recipe_and_its_run_is_measured(folder, capsys, monkeypatch):
    recipe = {
        "model_name_or_path": "student",
        "teacher_model_name_or_path": "teacher",
        "dataset_name": "story.txt",
        "context_length": 16,
        "rollout_length": 4,
        "num_iterations": 2,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "output_dir": "run",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = call("-m", "trl_exbias.cli.main", "dad-dagger", "--config", "recipe.yaml", "--alpha", "0.25", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "run" / "run.json").read_text())["config"]["alpha"] == 0.25
    assert "imitation learning approach" in (folder / "run" / "README.md").read_text()
    monkeypatch.chdir(folder)
    argv = ["measure", "run", "student", "--data", "story.txt", "--context_length", "16", "--horizon", "4"]
    assert main([*argv, "--max_starts", "4", "--num_samples", "1", "--device", "cpu"]) == 0


def test_rows_of_a_document_are_joined(folder):
    from trl import DatasetMixtureConfig

    from trl_exbias.settings.data_arguments import DataArguments
    from trl_exbias.settings.datasets import load_split

    rows = [{"story": i // 2, "sent": f"Sentence {i}."} for i in range(4)]
    (folder / "sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = DataArguments(
        dataset_name=str(folder / "sentences.jsonl"), text_template="{{ sent }}", document_column="story"
    )
    loaded = load_split(arguments, DatasetMixtureConfig(), "train")
    assert loaded["text"][:] == ["Sentence 0. Sentence 1.", "Sentence 2. Sentence 3."]
