"""`exbias evaluate` as a user runs it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from trl_exbias.cli.main import main

from ..tiny import byte_tokenizer, tiny_model


NUM_ROWS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    for name, seed in (("model", 0), ("other", 7)):
        tiny_model(seed=seed).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(NUM_ROWS)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def evaluate(*argv):
    return main(["evaluate", *argv, "--data", "pairs.jsonl", "--device", "cpu"])


def report_of(output):
    return json.loads(Path(output, "evaluation.json").read_text())


def test_two_models_give_a_table_a_report_and_paired_differences(capsys):
    argv = ["first=model", "other", "--suite", "degeneration", "likelihood", "--max_new_tokens", "6", "--output", "two"]
    assert evaluate(*argv, "--temperature", "1", "--num_generations", "2", "--num_samples", "1") == 0
    printed = capsys.readouterr().out
    assert "minus first" in printed and "free_running" in printed and "rep_2" in printed
    report = report_of("two")
    assert report["format"] == 1 and list(report["models"]) == ["first", "other"]
    assert report["settings"]["temperature"] == 1 and "transformers" in report["versions"]
    first, other = (report["models"][name]["figures"] for name in ("first", "other"))
    assert report["models"]["first"]["usage"]["generations"] == 2 * NUM_ROWS
    length, difference = first["degeneration"]["length"], report["differences"]["other"]["degeneration"]["length"]
    assert length["n"] == NUM_ROWS and length["std"] >= 0
    assert difference["mean"] == pytest.approx(other["degeneration"]["length"]["mean"] - length["mean"])
    assert length["settings"]["num_generations"] == 2 and length["settings"]["data"] == "pairs.jsonl"
    assert len(report["models"]["other"]["curves"]["likelihood"]["gap"]["mean"]) == 4
    assert report["models"]["first"]["fingerprint"] != report["models"]["other"]["fingerprint"]
    # Asked again, everything is there.
    assert evaluate(*argv, "--temperature", "1", "--num_generations", "2", "--num_samples", "1") == 0
    again = report_of("two")
    assert again["models"]["first"]["figures"] == report["models"]["first"]["figures"]
    assert again["models"]["first"]["usage"]["generations"] == 0


def test_a_killed_evaluation_goes_on_where_it_was(folder):
    argv = ["evaluate", "model", "--suite", "degeneration", "--data", "pairs.jsonl", "--device", "cpu"]
    argv += ["--max_new_tokens", "100", "--max_batch_tokens", "1", "--output", "killed"]
    process = subprocess.Popen([sys.executable, "-m", "trl_exbias.cli.main", *argv], cwd=folder, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(lines := _kept(folder / "killed")) < 4:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read().decode()[-2000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = [line for line in _kept(folder / "killed") if line.endswith("\n")]
    assert 4 <= len(before) < NUM_ROWS + 1 and before[: len(lines) - 1] == lines[: len(lines) - 1]
    # As if it had been killed in the middle of a line.
    with open(_file(folder / "killed"), "a") as file:
        file.write(before[-1][: len(before[-1]) // 2])
    assert main(argv) == 0
    after = _kept(folder / "killed")
    assert after[: len(before)] == before and len(after) == NUM_ROWS + 1
    assert len({json.loads(line)["prompt"] for line in after[1:]}) == NUM_ROWS
    usage = report_of("killed")["models"]["model"]["usage"]
    assert usage["kept_generations"] == len(before) - 1
    assert usage["generations"] == NUM_ROWS + 1 - len(before)


def _file(output):
    return next(output.glob("generations/*/*.jsonl"), None)


def _kept(output):
    file = _file(output)
    return [] if file is None else file.read_text().splitlines(keepends=True)


@pytest.fixture
def judge():
    """An endpoint that prefers the text with the longer answer, and cannot decide about the prompt `3 + 1 =`."""
    asked = []

    def answer(request):
        question = request.get_json()["messages"][-1]["content"]
        asked.append(question)
        post, _, rest = question.partition("[summary A]")
        a, _, b = rest.rpartition("Instructions:")[0].partition("[summary B]")
        verdict = "both" if "3 + 1 =" in post else "A" if len(a.strip()) > len(b.strip()) else "B"
        text = f"Comparison: one is longer.\nPreferred: {verdict}"
        message = {"role": "assistant", "content": text}
        body = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "judge",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
        return Response(json.dumps(body), content_type="application/json")

    with HTTPServer() as server:
        server.expect_request("/v1/chat/completions", method="POST").respond_with_handler(answer)
        yield server.url_for("/v1"), asked


def test_a_judge_is_asked_once_about_each_pair_and_its_cost_reported(judge, capsys):
    url, asked = judge
    argv = ["model", "--suite", "win_rate", "--max_new_tokens", "20", "--output", "judged"]
    argv += ["--judge_url", url, "--judge_model", "judge", "--judge_prices", "1", "10"]
    assert evaluate(*argv, "--dry_run") == 0
    printed = capsys.readouterr().out
    assert "12 responses are not made yet" in printed and "Preferred: A or B" in printed and not asked
    assert evaluate(*argv) == 0
    assert "10 tokens" not in capsys.readouterr().out
    report = report_of("judged")["models"]["model"]
    figure = report["figures"]["win_rate"]["win_rate"]
    lines = [json.loads(line) for line in _kept(Path("judged"))[1:]]
    texts = {bytes(line["prompt_ids"]): line["text"] for line in lines}
    assert len(texts) == len(asked) == NUM_ROWS
    assert (figure["n"], figure["missing"]) == (NUM_ROWS - 1, 1)
    assert report["usage"]["judge"]["cost"] == pytest.approx((12 * 100 + 12 * 10 * 10) / 1e6)
    longer = {}
    for i in range(NUM_ROWS):
        prompt = bytes(byte_tokenizer()(f"{i} + 1 =")["input_ids"])
        longer[str(i)] = float(len(texts[prompt].strip()) > len(f"{i + 1}"))
    assert figure["per_prompt"] == {key: value for key, value in longer.items() if key != "3"}
    assert evaluate(*argv) == 0 and len(asked) == NUM_ROWS


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model", "--suite", "ruge"], "there is no suite `ruge`. Did you mean `rouge`?"),
        (["model", "--suite", "win_rate"], "win_rate needs a judge: give --judge_url and --judge_model"),
        (["model", "a/model", "--suite", "rouge"], "are both called `model`"),
        (["nowhere", "--suite", "rouge"], "`nowhere` is not a folder here"),
        (["model", "--suite", "rouge", "--max_new_tokens", "0"], "`max_new_tokens` must be at least 1"),
        (["model", "--suite", "rouge", "--num_generations", "2"], "greedy responses are all the same"),
        (["model", "--suite", "rouge", "--completion_template", "{{ gold }}"], "`prompt_template` is missing"),
        (["model", "--suite", "rouge", "--judge_extra_body", "[1]"], "`judge_extra_body` cannot be read"),
        (["model", "--suite", "rouge", "--dry_run"], "A dry run is of suites that ask a judge"),
        (["model", "--suite", "geval", "--judge_url", "http://x/v1", "--judge_model", "j"], "`geval` needs --criteria"),
        (["model", "--suite", "win_rate", "--judge_url", "https://x/v1", "--judge_model", "j"], "OPENAI_API_KEY"),
    ],
)
def test_mistakes_get_one_line(capsys, argv, message):
    assert evaluate(*argv) == 2
    assert message in capsys.readouterr().err


def test_several_models_and_data_of_their_own_for_suites(capsys):
    rows = [{"question": "1 + 1?", "answer": "#### 2"}]
    Path("gsm8k.jsonl").write_text(json.dumps(rows[0]) + "\n")
    argv = ["evaluate", "model", "--suite", "gsm8k", "rouge", "--data", "pairs.jsonl", "gsm8k=gsm8k.jsonl"]
    assert main([*argv, "--max_new_tokens", "4", "--output", "own", "--device", "cpu", "--num_examples", "3"]) == 0
    figures = report_of("own")["models"]["model"]["figures"]
    assert list(figures) == ["gsm8k", "rouge"]
    assert figures["gsm8k"]["gsm8k_strict"]["n"] == 1 and figures["rouge"]["rouge_1"]["n"] == 3
    assert figures["gsm8k"]["gsm8k_strict"]["settings"]["as_conversation"] is True
