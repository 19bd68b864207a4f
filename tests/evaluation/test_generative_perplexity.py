"""Generative perplexity against one forward after another."""

import json
import math

import pytest
import torch

from trl_exbias.evaluation import EvaluationOptions, Figure, evaluate
from trl_exbias.evaluation.generative_perplexity import generative_cross_entropy

from ..tiny import byte_tokenizer, tiny_model


PROMPTS = {"a": "One and", "b": "", "c": "Three and"}
RESPONSES = {"a": " one.", "b": "Two!", "c": ""}
REFERENCES = {"a": " one is two.", "b": "No.", "c": " three"}


def slow(model, tokenizer, prompt, text):
    context = tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        log_probs = model(torch.tensor([context + ids])).logits[0].log_softmax(-1)
    return [-log_probs[len(context) - 1 + j, token].item() for j, token in enumerate(ids)]


def test_texts_are_scored_after_their_prompts():
    model, tokenizer = tiny_model(seed=3), byte_tokenizer()
    found = generative_cross_entropy(model, tokenizer, PROMPTS, RESPONSES, REFERENCES)
    means = {}
    for name, texts in (("generative_cross_entropy", RESPONSES), ("reference_cross_entropy", REFERENCES)):
        nll = [value for key in PROMPTS for value in slow(model, tokenizer, PROMPTS[key], texts[key])]
        means[name] = sum(nll) / len(nll)
        assert found[name].mean == pytest.approx(means[name], abs=1e-5) and found[name].n == 3
    assert found["minus_reference"].mean == pytest.approx(
        means["generative_cross_entropy"] - means["reference_cross_entropy"], abs=1e-5
    )
    assert found["minus_reference"].low <= found["minus_reference"].mean <= found["minus_reference"].high


def test_a_scorer_reads_what_its_positions_leave_of_a_prompt():
    model, tokenizer = tiny_model("gpt2"), byte_tokenizer()  # 256 positions
    long, response = {"a": "x" * 300 + "One and"}, {"a": "one"}
    cut = {"a": long["a"][-253:]}
    whole, short = (generative_cross_entropy(model, tokenizer, prompts, response, response) for prompts in (long, cut))
    assert whole["generative_cross_entropy"].mean == pytest.approx(short["generative_cross_entropy"].mean, abs=1e-6)


def test_empty_responses_alone_have_no_figure():
    empty = dict.fromkeys(PROMPTS, "")
    found = generative_cross_entropy(tiny_model(), byte_tokenizer(), PROMPTS, empty, REFERENCES)
    assert found["generative_cross_entropy"].n == 0 and found["generative_cross_entropy"].missing == 3
    assert found["reference_cross_entropy"].n == 3 and found["minus_reference"].n == 0


def test_the_suite_reports_a_perplexity_and_the_references(tmp_path):
    for name, seed in (("model", 0), ("scorer", 7)):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i} + 1 =", "completion": f" {i + 1}"}) + "\n" for i in range(6))
    )
    for conversation in (False, True):
        asked = EvaluationOptions(
            suites=("generative_perplexity",),
            data=(str(tmp_path / "pairs.jsonl"),),
            perplexity_model=str(tmp_path / "scorer"),
            max_new_tokens=5,
            output=tmp_path / "out",
            as_conversation=conversation,
            device="cpu",
        )
        report = evaluate({"model": str(tmp_path / "model")}, asked)["models"]["model"]["figures"]
        found = {name: Figure.from_dict(record) for name, record in report["generative_perplexity"].items()}
        entropy = found["generative_cross_entropy"]
        assert found["generative_perplexity"].mean == pytest.approx(math.exp(entropy.mean))
        separator = "\n\n" if conversation else ""
        nll = [
            value
            for i in range(6)
            for value in slow(tiny_model(seed=7), byte_tokenizer(), f"{i} + 1 ={separator}", f" {i + 1}")
        ]
        assert found["reference_cross_entropy"].mean == pytest.approx(sum(nll) / len(nll), abs=1e-4)
        assert entropy.settings["scorer"]["model"] == str(tmp_path / "scorer") and entropy.n == 6
