import json
from pathlib import Path

import pytest

from trl_exbias.cli.compare import _overrides
from trl_exbias.cli.evaluate import _parser
from trl_exbias.comparing.comparison_file import read_comparison
from trl_exbias.comparing.demo_inputs import with_demo
from trl_exbias.comparing.evaluate_options import arguments
from trl_exbias.comparing.evaluating import check_evaluation
from trl_exbias.comparing.samples import read_samples

from ..tiny import byte_tokenizer


def test_options_reach_the_command_as_they_are_in_the_file():
    options = {
        "suites": ["likelihood", "rouge"],
        "data": "test.jsonl",
        "as_conversation": False,
        "both_orders": True,
        "trust_remote_code": False,
        "split": None,
        "num_examples": 8,
        "judge_prices": [0.5, 1.5],
    }
    read = _parser().parse_args(["sft=runs/sft", *arguments(options)])
    assert read.models == ["sft=runs/sft"] and read.suites == ["likelihood", "rouge"] and read.data == ["test.jsonl"]
    assert (read.as_conversation, read.both_orders, read.trust_remote_code) == (False, True, False)
    assert (read.split, read.num_examples, read.judge_prices) == (None, 8, [0.5, 1.5])


def test_the_command_line_is_read_as_a_recipe_is():
    argv = ["--suite", "rouge", "gsm8k", "--num_examples=8", "--learning_rate", "1e-4", "--as_conversation"]
    assert _overrides([*argv, "--prompt_template", "{{ question }}", "--split", "test[:9]"]) == {
        "suite": ["rouge", "gsm8k"],
        "num_examples": 8,
        "learning_rate": 1e-4,
        "as_conversation": True,
        "prompt_template": "{{ question }}",
        "split": "test[:9]",
    }
    with pytest.raises(ValueError, match="`rouge` is neither"):
        _overrides(["rouge"])


def generations(folder, fingerprint, settings, texts):
    """As the evaluation keeps them: settings, then a response a line."""
    path = folder / fingerprint[:16] / f"{abs(hash(str(settings)))}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"format": 1, "model": fingerprint, "settings": settings}]
    for prompt, answers in texts.items():
        ids = byte_tokenizer()(prompt)["input_ids"]
        lines += [{"prompt": prompt, "number": n, "prompt_ids": ids, "text": t} for n, t in enumerate(answers)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_samples_are_first_responses_of_all_models_to_prompts_they_share(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "model")
    greedy, warm = {"temperature": 0.0}, {"temperature": 0.7}
    generations(tmp_path, "a" * 32, greedy, {"2+2?": ["4", "5"], "1+1?": ["2"], "only a?": ["x"]})
    generations(tmp_path, "b" * 32, greedy, {"1+1?": ["3"], "2+2?": ["<b>"]})
    generations(tmp_path, "a" * 32, warm, {"alone?": ["x"] * 9})
    models = {name: {"fingerprint": name * 32, "folder": str(tmp_path / "model")} for name in "ab"}
    found = read_samples(tmp_path, models)
    assert [(sample.prompt, sample.completions) for sample in found] == [
        ("1+1?", {"a": "2", "b": "3"}),
        ("2+2?", {"a": "4", "b": "<b>"}),
    ]
    assert len(read_samples(tmp_path, models, number=1)) == 1
    assert read_samples(tmp_path / "model", models) == ()


def test_the_demo_brings_word_problems_that_training_and_evaluation_do_not_share(tmp_path, monkeypatch):
    cache = tmp_path / "SmolLM2-135M-Instruct"
    cache.mkdir()
    (cache / "model.safetensors").touch()  # there already: nothing is fetched
    monkeypatch.setenv("TRL_EXBIAS_CACHE", str(tmp_path))
    file = tmp_path / "demo.yaml"
    file.write_text("runs: {sft: {method: sft}}\nevaluate: {suites: [rouge]}\ndemo: {rows: 600, held_out: 400}\n")
    found = with_demo(read_comparison(file), tmp_path / "out")
    keys = found.runs[0].keys
    assert keys["model_name_or_path"] == str(cache)
    paths = map(Path, (keys["dataset_name"], *found.evaluate["data"]))
    train, test = ([json.loads(line) for line in path.read_text().splitlines()] for path in paths)
    assert (len(train), len(test)) == (600, 400)
    questions = [{row["prompt"][0]["content"] for row in rows} for rows in (train, test)]
    assert not questions[0] & questions[1]


def test_the_evaluations_data_are_loaded_before_anything_is_trained(tmp_path):
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps({"prompt": "1+1?", "completion": "2"}) + "\n")
    check_evaluation({"suites": ["degeneration", "likelihood"], "data": str(data)})
    with pytest.raises(ValueError, match="no data of its own"):
        check_evaluation({"suites": ["degeneration"]})
    with pytest.raises(ValueError, match="`likelihood` cannot be loaded"):
        check_evaluation({"suites": ["likelihood"], "data": str(tmp_path / "nowhere.jsonl")})


def test_a_model_that_measures_and_too_few_prompts_are_looked_for_before_training(tmp_path):
    rows = [{"prompt": f"{i}?", "completion": f"{i}."} for i in range(19)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"suites": ["generative_perplexity"], "data": [str(tmp_path / "few.jsonl")]}
    with pytest.raises(ValueError, match="--perplexity_model: `nowhere` is not a folder here"):
        check_evaluation({**options, "perplexity_model": "nowhere"})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="--perplexity_model: .* holds no tokenizer"):
        check_evaluation({**options, "perplexity_model": str(tmp_path)})
    byte_tokenizer().save_pretrained(tmp_path)
    check_evaluation({**options, "perplexity_model": str(tmp_path)})
    pytest.importorskip("mauve")
    with pytest.raises(ValueError, match="`mauve` needs at least 20 prompts"):
        check_evaluation({**options, "suites": ["mauve"], "mauve_model": str(tmp_path)})
