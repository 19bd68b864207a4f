import asyncio
import json
import logging
import time

import pytest
from werkzeug import Response

from trl_exbias.evaluation.judging import JudgeClient, JudgeError, estimate
from trl_exbias.evaluation.judging import client as client_module

from .conftest import completion, refusal


def test_answers_in_order_with_tokens_and_cost(judge, make_client, question):
    judge.say = lambda body: body["messages"][0]["content"].upper()
    client = make_client(prompt_price=3.0, completion_price=10.0, temperature=0.5, max_tokens=7)
    answers = client.ask([question("one"), question("two"), question("three")])
    assert [answer.text for answer in answers] == ["ONE", "TWO", "THREE"]
    assert client.usage.as_dict() == {
        "requests": 3, "cached": 0, "failed": 0, "prompt_tokens": 300, "completion_tokens": 30,
        "cost": pytest.approx((300 * 3 + 30 * 10) / 1e6),
    }  # fmt: skip
    assert {(b["model"], b["temperature"], b["max_tokens"]) for b in judge.bodies} == {("judge", 0.5, 7)}
    assert make_client().usage.cost is None


def test_a_question_overrides_the_client(judge, make_client, question):
    make_client().ask([question(temperature=1.0, max_tokens=3, top_logprobs=5)])
    make_client(temperature=None).ask([question()])
    sent = {key: judge.bodies[0][key] for key in ("temperature", "max_tokens", "logprobs", "top_logprobs")}
    assert sent == {"temperature": 1.0, "max_tokens": 3, "logprobs": True, "top_logprobs": 5}
    assert not {"temperature", "logprobs", "top_logprobs"} & set(judge.bodies[1])


def test_fields_that_only_one_endpoint_knows(judge, make_client, question, tmp_path):
    body = {"structured_outputs": {"regex": "Preferred: (A|B)"}}
    path = tmp_path / "judge.jsonl"
    held = make_client(cache=path, extra_body=body)
    held.ask([question()])
    assert judge.bodies[0]["structured_outputs"] == body["structured_outputs"]
    assert held.settings["judge_extra_body"] == body
    make_client(cache=path).ask([question()])
    assert len(judge.bodies) == 2, "another question: the answer has another form"


def test_tokens_and_their_alternatives(judge, make_client, question, tmp_path):
    tokens = [("Score", {"Score": -0.1}), (": 4", {": 4": -0.5, ": 5": -1.0})]
    judge.say = tokens
    path = tmp_path / "judge.jsonl"
    fresh = make_client(cache=path).ask([question(top_logprobs=2)])[0]
    assert fresh.text == "Score: 4" and fresh.tokens == tuple(tokens)
    assert make_client(cache=path).ask([question(top_logprobs=2)])[0] == fresh


def test_the_token_that_ends_a_turn_is_no_part_of_the_answer(judge, make_client, question):
    """vLLM reports it among the log-probabilities, after the text."""
    tokens = [("Score", {"Score": -0.1}), (": 4", {": 4": -0.5}), ("<|im_end|>", {"<|im_end|>": 0.0})]
    judge.say = lambda body: completion(tokens, text="Score: 4")
    assert make_client().ask([question(top_logprobs=2)])[0].tokens == tuple(tokens[:2])


@pytest.mark.parametrize(
    "script",
    [
        [refusal(429)],
        [refusal(429, headers={"Retry-After": "0.01"})],
        [refusal(500), refusal(503), refusal(502)],
        [refusal(408), refusal(409)],
        [Response('{"id": "1", "choices": [{"index": 0, "mess', content_type="application/json")],
        [Response("<html>Bad gateway</html>", content_type="text/html")],
        [Response('{"choices": []}', content_type="application/json")],
        [Response("[]", content_type="application/json"), Response("null", content_type="application/json")],
        [Response('{"choices": [{"finish_reason": "stop"}]}', content_type="application/json")],
        [Response(b'{"choices": "\xff\xfe', content_type="application/json")],
    ],
    ids=["429", "429 with Retry-After", "5xx", "408, 409", "half JSON", "HTML", "no choices", "no object", "no message", "bytes"],
)  # fmt: skip
def test_what_is_wrong_for_the_moment_is_asked_again(judge, make_client, question, script):
    attempts = len(script) + 1
    judge.script = list(script)
    client = make_client()
    assert client.ask([question()])[0].text.endswith("Preferred: A")
    assert len(judge.bodies) == attempts
    assert client.usage.failed == 0 and client.usage.requests == 1


def test_retry_after_is_waited_for(judge, make_client, question):
    judge.script = [refusal(429, headers={"Retry-After": "0.6"})]
    start = time.perf_counter()
    assert make_client().ask([question()])[0] is not None
    assert time.perf_counter() - start >= 0.6


def test_a_time_out_is_asked_again(judge, make_client, question):
    def slow(body):
        time.sleep(1.0)
        return "too late"

    judge.script, judge.say = [slow], "in time"
    assert make_client(timeout=0.5).ask([question()])[0].text == "in time"


@pytest.mark.parametrize(
    "bad",
    [refusal(500), refusal(429), Response('{"choices": [', content_type="application/json"), "",
     refusal(400, "This model's maximum context length is 2048 tokens. However, ...", code="context_length_exceeded"),
     refusal(400, "The decoder prompt (length 5000) is longer than the maximum model length of 2048.", code="400"),
     refusal(400, "The response was filtered", code="content_filter")],
    ids=["500", "429", "half JSON", "no text", "too long", "too long for vLLM", "filtered"],
)  # fmt: skip
def test_a_failure_for_good_is_one_missing_answer(judge, make_client, question, bad, caplog):
    judge.say = lambda body: bad if "bad" in body["messages"][0]["content"] else "good"
    client = make_client(max_retries=1)
    answers = client.ask([question("1"), question("bad"), question("2")])
    assert [answer and answer.text for answer in answers] == ["good", None, "good"]
    assert client.usage.failed == 1
    assert "1 questions without an answer count as missing" in caplog.text


def test_failures_are_asked_again_by_the_next_run(judge, make_client, question, tmp_path):
    judge.script = [refusal(500)]
    first = make_client(max_retries=0, cache=tmp_path / "judge.jsonl")
    assert first.ask([question()]) == [None]
    second = make_client(cache=tmp_path / "judge.jsonl")
    assert second.ask([question()])[0].text and second.usage.requests == 1


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [(401, "invalid_api_key", "api_key_env"), (403, None, "does not allow"), (404, "model_not_found", "judge's name"),
     (400, None, "temperature=None"), (422, None, "temperature=None"), (429, "insufficient_quota", "used up")],
)  # fmt: skip
def test_what_all_questions_would_meet_ends_it(judge, make_client, question, tmp_path, status, code, hint):
    judge.script, judge.say = ["kept"], refusal(status, "refused because", code)
    client = make_client(max_concurrency=1, max_retries=0, cache=tmp_path / "judge.jsonl")
    with pytest.raises(JudgeError, match=f"refuses: .*refused because.*{hint}"):
        client.ask([question(str(i)) for i in range(50)])
    assert len(judge.bodies) == 2
    assert make_client(cache=tmp_path / "judge.jsonl").ask([question("0")])[0].text == "kept"


def test_a_dead_endpoint_ends_it(judge, make_client, question, monkeypatch):
    monkeypatch.setattr(client_module, "FAILURES_IN_A_ROW", 4)
    judge.say = refusal(500, "down")
    with pytest.raises(JudgeError, match="4 questions in a row; .*down"):
        make_client(max_concurrency=2, max_retries=0).ask([question(str(i)) for i in range(50)])
    assert len(judge.bodies) <= 6


def test_nobody_there(question, monkeypatch):
    monkeypatch.setattr(client_module, "FAILURES_IN_A_ROW", 2)
    client = JudgeClient("http://127.0.0.1:9/v1", "judge", max_concurrency=1, max_retries=0)
    with pytest.raises(JudgeError, match="Connection error"):
        client.ask([question("1"), question("2")])


def test_the_newer_name_of_the_limit(judge, make_client, question):
    message = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )

    def newer(body):
        return refusal(400, message, "unsupported_parameter") if "max_tokens" in body else "yes"

    judge.say = newer
    answers = make_client(max_concurrency=1).ask([question("1"), question("2")])
    assert [answer.text for answer in answers] == ["yes", "yes"]
    assert [body.get("max_completion_tokens") for body in judge.bodies] == [None, 512, 512]


def test_bounded_concurrency(judge, make_client, question):
    judge.delay = 0.1
    make_client(max_concurrency=4).ask([question(str(i)) for i in range(16)])
    assert judge.most_under_way == 4


def test_equal_questions_are_asked_once(judge, make_client, question, tmp_path):
    client = make_client(cache=tmp_path / "judge.jsonl")
    answers = client.ask([question("x"), question("y"), question("x"), question("x", sample=1)])
    assert len(judge.bodies) == 3 and answers[0] is answers[2]
    assert (client.usage.requests, client.usage.cached) == (3, 1)
    assert len((tmp_path / "judge.jsonl").read_text().splitlines()) == 3


def test_the_key_appears_nowhere(judge, make_client, question, tmp_path, monkeypatch, caplog, capfd):
    key = "sk-very-secret-1234"
    monkeypatch.setenv("MY_KEY", key)
    caplog.set_level(logging.DEBUG)
    client = make_client(api_key_env="MY_KEY", cache=tmp_path / "judge.jsonl", max_retries=0)
    judge.script = ["fine", refusal(500, f"broken for {key}")]
    client.ask([question("1")])
    client.ask([question("2")])
    judge.say = refusal(401, f"Incorrect API key provided: {key}")
    with pytest.raises(JudgeError) as caught:
        client.ask([question("3")])
    assert {headers["Authorization"] for headers in judge.headers} == {f"Bearer {key}"}
    everywhere = (tmp_path / "judge.jsonl").read_text() + caplog.text + "".join(capfd.readouterr())
    everywhere += str(caught.value) + repr(vars(client)) + repr(client.settings)
    assert "Incorrect API key provided: ***" in str(caught.value)
    assert key not in everywhere


def test_https_needs_a_key_and_http_does_not(judge, make_client, question, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(JudgeError, match="set the environment variable `OPENAI_API_KEY`"):
        JudgeClient("https://localhost:1/v1", "judge").ask([question()])
    assert make_client().ask([question()])[0] is not None


def test_inside_a_running_loop(judge, make_client, question):
    """As in a notebook."""

    async def notebook():
        return make_client().ask([question()])

    assert asyncio.run(notebook())[0].text.endswith("Preferred: A")
    judge.say = refusal(401)

    async def refused():
        make_client().ask([question()])

    with pytest.raises(JudgeError):
        asyncio.run(refused())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "not the address"),
        ({"base_url": "https://me:secret@host/v1"}, "holds a password"),
        ({"model": ""}, "`model` is empty"),
        ({"max_concurrency": 0}, "`max_concurrency` is 0; it must be at least 1"),
        ({"max_retries": -1}, "`max_retries`"),
        ({"max_tokens": 0}, "`max_tokens`"),
        ({"timeout": 0}, "`timeout`"),
        ({"prompt_price": 1.0}, "Give both"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        JudgeClient(**{"base_url": "http://localhost/v1", "model": "judge", **options})
    assert "secret" not in str(caught.value)


def test_estimate_counts_what_would_be_asked(judge, make_client, question):
    questions = [question("x" * 400), question("x" * 400), question("é" * 200, max_tokens=10)]
    found = estimate(questions, prices=(1.0, 2.0), max_tokens=50)
    assert (found.requests, found.prompt_tokens, found.completion_tokens) == (2, 216, 60)
    assert found.cost == pytest.approx((216 + 2 * 60) / 1e6)
    client = make_client(max_tokens=50, prompt_price=1.0, completion_price=2.0)
    assert client.estimate(questions) == found and not judge.bodies
    client.ask(questions[:1])
    assert client.estimate(questions).requests == 1
    assert "1 requests, about 108 prompt tokens, at most 10 completion tokens" in str(client.estimate(questions))


def test_the_server_of_these_tests_speaks_the_api():
    reply = json.loads(completion([("a", {"a": 0.0})]).get_data())
    from openai.types.chat import ChatCompletion

    assert ChatCompletion.model_validate(reply).choices[0].message.content == "a"
