"""`exbias diagnose` as a user runs it."""

import json

import pytest

from trl_exbias.bench.model import REFERENCE_TEMPLATE, dataset_of, new_model, tokenizer_of
from trl_exbias.bench.tasks import TASKS
from trl_exbias.cli.main import main
from trl_exbias.evaluation.diagnosis import diagnose, model_judge

from ..tiny import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnose")
    task = TASKS["walk"]
    for name, seed in (("model", 0), ("teacher", 7)):
        new_model(task, seed).save_pretrained(folder / name)
        tokenizer_of(task).save_pretrained(folder / name)
    tiny_model().save_pretrained(folder / "other")
    byte_tokenizer().save_pretrained(folder / "other")
    rows = dataset_of(task, task.make(12, seed=3))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "chats.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"Say {i}"},
                        {"role": "assistant", "content": f"It is {i}."},
                    ]
                }
            )
            + "\n"
            for i in range(4)
        )
    )
    (folder / "story.txt").write_text("n1 n2 n3 n4 n5 n6 " * 20)
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run(*argv, data="rows.jsonl"):
    return main(["diagnose", "model", "--data", data, "--device", "cpu", *argv])


def test_a_teacher_is_asked_about_the_models_own_prefixes(folder, capsys):
    assert run("--teacher", "teacher", "--share", "1", "--seed", "3", "--output", "found.json") == 0
    printed = capsys.readouterr().out
    found = json.loads((folder / "found.json").read_text())
    assert f"Gold after a token that differs: {found['verdict']}" in printed and "the teacher (teacher)" in " ".join(
        printed.split()
    )
    task = TASKS["walk"]
    rows, eos = task.make(12, seed=3), len(task.words)
    prompts, responses = rows.prompts.tolist(), [[*row, eos] for row in rows.responses.tolist()]
    model, teacher = (new_model(task, seed).eval() for seed in (0, 7))
    expected = diagnose(model, prompts, responses, model_judge(teacher, prompts), share=1, seed=3).as_dict()
    for name in ("changed", "after_gold", "after_other", "kept", "accepted"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)
    assert found["num_places"] == expected["num_places"] and found["settings"]["share"] == 1
    assert found["explanation"].split()[:4] == printed.split("\n\n")[1].split()[:4]


def test_without_a_teacher_the_model_is_shown_the_reference(folder, capsys):
    template = REFERENCE_TEMPLATE
    assert run("--correction_template", template, "--output", "own.json") == 0
    assert "it does not read the reference" in " ".join(capsys.readouterr().out.split())
    found = json.loads((folder / "own.json").read_text())
    assert found["verdict"] == "cannot tell" and found["judge_nll"] > 0.7 * found["model_nll"]


def test_conversations_and_plain_text(folder, capsys):
    argv = ["diagnose", "other", "--data", "chats.jsonl", "--device", "cpu", "--horizon", "6"]
    assert main(argv) == 0
    assert "of the tokens that the model drew on 4 rows" in " ".join(capsys.readouterr().out.split())
    text = ["--context_length", "4", "--horizon", "8", "--max_starts", "5", "--teacher", "teacher"]
    assert run(*text, data="story.txt") == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--share", "0"], "--share must be above 0 and at most 1, got 0.0."),
        (["--correction_template", "{{ prompt }}"], "does not mention `{{ reference }}`"),
        (["--correction_template", "qs"], "neither one of 'qa'"),
        (["--teacher", "other"], "need the same tokenizer"),
        (["--data", "story.txt", "--context_length", "4", "--horizon", "8"], "Plain text has no reference to show"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_mistakes_get_one_line(capsys, argv, message, monkeypatch):
    monkeypatch.setattr("trl_exbias.evaluation.loading.load_model", None)  # before a model is loaded
    assert run(*argv) == 2
    assert message in capsys.readouterr().err
