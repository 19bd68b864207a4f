"""MAUVE against mauve-text, its interval against fresh samples, and the features it is given."""

import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from trl_exbias.evaluation import Figure, evaluate, paired_difference
from trl_exbias.evaluation.mauve import mauve
from trl_exbias.evaluation.measuring_models import text_features
from trl_exbias.evaluation.options import EvaluationOptions

from ..tiny import VOCAB_SIZE, byte_tokenizer, tiny_model


NUM_PROMPTS = 120


def clouds(seed, weights, count=NUM_PROMPTS):
    """Features around five centres, drawn with these weights."""
    centres = np.random.default_rng(0).normal(size=(5, 16))
    generator = np.random.default_rng(seed)
    return centres[generator.choice(5, count, p=weights)] + generator.normal(scale=0.3, size=(count, 16))


EVEN, SKEWED = [0.2] * 5, [0.76, 0.06, 0.06, 0.06, 0.06]


def of(seed, weights):
    ids = [str(i) for i in range(NUM_PROMPTS)]
    return mauve(ids, clouds(1000 + seed, EVEN), clouds(2000 + seed, weights))


def test_the_figure_is_mauve_texts():
    compute_mauve = pytest.importorskip("mauve").compute_mauve
    for weights in (EVEN, SKEWED):
        found, expected = of(0, weights), compute_mauve(clouds(1000, EVEN), clouds(2000, weights))
        assert found.mean == pytest.approx(expected.mauve, abs=1e-9)
        assert found.settings["num_buckets"] == expected.num_buckets and found.n == NUM_PROMPTS


def test_another_distribution_is_found_and_the_interval_is_that_of_fresh_samples():
    pytest.importorskip("mauve")
    same, other = [of(seed, EVEN) for seed in range(8)], [of(seed, SKEWED) for seed in range(8)]
    assert np.mean([figure.mean for figure in same]) > 0.9 > 0.8 > np.mean([figure.mean for figure in other])
    errors = [np.std(list(figure.per_prompt.values())) / np.sqrt(NUM_PROMPTS) for figure in other]
    assert np.mean(errors) == pytest.approx(np.std([figure.mean for figure in other], ddof=1), rel=0.4)
    assert all(0 <= figure.low <= figure.mean <= figure.high <= 1 for figure in same)
    better = [paired_difference(one, two) for one, two in zip(same, other, strict=True)]
    assert sum(difference.low > 0 for difference in better) >= 7


def test_texts_are_read_to_their_last_token_by_a_causal_model_and_as_a_mean_by_an_encoder():
    tokenizer, texts = byte_tokenizer(), ["One.", "A longer text", ""]
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for model in (tiny_model().model, BertModel(BertConfig(vocab_size=VOCAB_SIZE, **size)).eval()):
        together = text_features(model, tokenizer, texts, 8, 1000)
        for text, found in zip(texts, together, strict=True):
            ids = tokenizer(text)["input_ids"][:8] or [tokenizer.eos_token_id]
            with torch.no_grad():
                hidden = model(torch.tensor([ids])).last_hidden_state[0]
            expected = hidden[-1] if model.config.model_type == "qwen2" else hidden.mean(0)
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mauve")
    tiny_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(24)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(folder, suite="mauve", **more):
    given = {"mauve_model": str(folder / "model"), "perplexity_model": str(folder / "model"), **more}
    return EvaluationOptions(
        suites=(suite,), data=(str(folder / "pairs.jsonl"),), output=folder / "out", device="cpu", **given
    )


def test_the_suite_compares_responses_with_references(folder):
    pytest.importorskip("mauve")
    asked = options(folder, max_new_tokens=4, num_generations=2)
    record = evaluate({"model": str(folder / "model")}, asked)["models"]["model"]["figures"]["mauve"]["mauve"]
    figure = Figure.from_dict(record)
    assert 0 <= figure.low <= figure.mean <= 1 and figure.n == 24 and figure.std is not None
    assert figure.settings["features"]["model"] == str(folder / "model")
    assert figure.settings["temperature"] == 1.0 and len(figure.settings["features"]["fingerprint"]) == 16


def test_what_cannot_be_measured_is_said_before_anything_is_generated(folder):
    pytest.importorskip("mauve")
    for suite, option in (("mauve", "mauve_model"), ("generative_perplexity", "perplexity_model")):
        with pytest.raises(ValueError, match=f"--{option}: `nowhere` is not a folder here"):
            evaluate({"model": str(folder / "model")}, options(folder, suite, **{option: "nowhere"}))
    with pytest.raises(ValueError, match="`mauve` needs at least 20 prompts, .* there are 19"):
        (folder / "few.jsonl").write_text("".join((folder / "pairs.jsonl").read_text().splitlines(True)[:19]))
        few = EvaluationOptions(suites=("mauve",), data=(str(folder / "few.jsonl"),), mauve_model=str(folder / "model"))
        evaluate({"model": str(folder / "model")}, few)
    (folder / "story.txt").write_text("The quick brown fox. ")
    text = EvaluationOptions(
        suites=("mauve",),
        data=(str(folder / "story.txt"),),
        mauve_model=str(folder / "model"),
        context_length=4,
        max_new_tokens=4,
    )
    with pytest.raises(ValueError, match="there are 14"):
        evaluate({"model": str(folder / "model")}, text)
    assert not (folder / "out" / "generations").is_dir() or len(list((folder / "out").glob("generations/*/*"))) <= 1
