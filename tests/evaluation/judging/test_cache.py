import json
import multiprocessing
import signal
import subprocess
import sys
import time

import pytest

from trl_exbias.evaluation.judging import JudgeAnswer
from trl_exbias.evaluation.judging.cache import AnswerCache


def test_answers_are_there_in_the_next_run(judge, make_client, question, tmp_path):
    path = tmp_path / "deeper" / "judge.jsonl"
    first = make_client(cache=path).ask([question("1"), question("2")])
    client = make_client(cache=path)
    assert client.ask([question("2"), question("1")]) == first[::-1]
    assert (client.usage.requests, client.usage.cached, client.usage.prompt_tokens) == (0, 2, 0)
    assert len(judge.bodies) == 2


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.7}, {"temperature": None}, {"max_tokens": 100}],
)
def test_other_settings_are_other_questions(judge, make_client, question, tmp_path, options):
    make_client(cache=tmp_path / "judge.jsonl").ask([question()])
    make_client(cache=tmp_path / "judge.jsonl", **options).ask([question()])
    assert len(judge.bodies) == 2


@pytest.mark.parametrize("fields", [{"sample": 1}, {"top_logprobs": 5}, {"temperature": 0.7}, {"max_tokens": 9}])
def test_other_requests_are_other_questions(judge, make_client, question, fields):
    make_client().ask([question(), question(**fields)])
    assert len(judge.bodies) == 2


def test_the_endpoint_does_not_matter(judge, make_client, question, tmp_path):
    make_client(cache=tmp_path / "judge.jsonl").ask([question()])
    from trl_exbias.evaluation.judging import JudgeClient

    elsewhere = JudgeClient("http://127.0.0.1:9/v1", "judge", cache=tmp_path / "judge.jsonl")
    assert elsewhere.ask([question()])[0] is not None


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_last_line_cut_short(judge, make_client, question, tmp_path, cut, caplog):
    """As a kill leaves it: cut by one character, only the line's end is missing."""
    path = tmp_path / "judge.jsonl"
    make_client(cache=path, max_concurrency=1).ask([question("1"), question("2")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    client = make_client(cache=path)
    client.ask([question("1"), question("2"), question("3")])
    assert client.usage.requests == (1 if cut == 1 else 2)
    assert ("1 unreadable lines" in caplog.text) == (cut > 1)
    again = make_client(cache=path)
    again.ask([question("1"), question("2"), question("3")])
    assert again.usage.requests == 0


def test_lines_of_something_else(judge, make_client, question, tmp_path):
    path = tmp_path / "judge.jsonl"
    path.write_bytes(b'[]\n\n{"key": "a"}\n{"key": "b", "answer": {"words": 1}}\n\xff\xfe\nnull\n')
    assert make_client(cache=path).ask([question()])[0] is not None
    assert make_client(cache=path).usage.requests == 0


def test_unusual_text_comes_back(tmp_path):
    text = "line\u2028separator \x85 next\r\n “quotes” 🙂 \x00"
    cache = AnswerCache(tmp_path / "judge.jsonl")
    cache.add("k", JudgeAnswer(text), "judge", "t")
    assert AnswerCache(tmp_path / "judge.jsonl").get("k").text == text


def _write(path, number):
    cache = AnswerCache(path)
    for i in range(50):
        cache.add(f"{number}-{i}", JudgeAnswer("x" * 5000), "judge", "t")


def test_processes_share_a_file(tmp_path):
    path = tmp_path / "judge.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(AnswerCache(path)) == 150
    assert all(json.loads(line) for line in path.read_text().splitlines())


SCRIPT = """
import sys
from pathlib import Path
from trl_exbias.evaluation.judging import JudgeClient, JudgeRequest
client = JudgeClient(sys.argv[1], "judge", cache=Path(sys.argv[2]), max_concurrency=2)
client.ask([JudgeRequest(({"role": "user", "content": str(i)},), "test-1") for i in range(200)])
"""


def test_what_a_killed_run_was_told_is_not_asked_again(judge, make_client, question, tmp_path):
    path = tmp_path / "judge.jsonl"
    judge.delay = 0.05
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, judge.base_url, str(path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = path.read_bytes().count(b"\n")
    judge.delay = 0.0
    client = make_client(cache=path)
    answers = client.ask([question(str(i)) for i in range(200)])
    assert 5 <= kept < 200 and client.usage.requests == 200 - kept and None not in answers


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder; give a file"):
        AnswerCache(tmp_path)
