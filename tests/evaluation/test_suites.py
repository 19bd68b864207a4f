"""Each suite's figures against a slow, obvious computation, on responses that are known."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from trl_exbias.evaluation import EvaluationOptions, Figure, evaluate, exposure_bias_from, perplexity
from trl_exbias.evaluation.figures import token_mean
from trl_exbias.evaluation.generations import Generation
from trl_exbias.evaluation.subject import EvaluatedModel, Sampling
from trl_exbias.evaluation.suites import JUDGED, SUITES, load_suite
from trl_exbias.evaluation.suites.math import grade_exact
from trl_exbias.evaluation.tasks import load, spread
from trl_exbias.evaluation.work import Work, combined

from ..tiny import byte_tokenizer, tiny_model


ROWS = [
    {"question": "One and one?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2", "prompt_is": "a"},
    {"question": "A thousand and a bit?", "answer": "It is\n#### 1,003", "prompt_is": "b"},
    {"question": "Nothing?", "answer": "#### 0", "prompt_is": "c"},
]
STORY = "The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suites")
    for name, seed in (("model", 0), ("other", 7)):
        tiny_model(seed=seed).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    write(folder / "gsm8k.jsonl", ROWS)
    pairs = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}" + "!" * i, "all": [f"{i + 1}", "x"]} for i in range(4)]
    write(folder / "pairs.jsonl", pairs)
    write(folder / "chats.jsonl", [{"messages": turns(f"Say {i}", f"{i}")} for i in range(3)])
    (folder / "story.txt").write_text(STORY)
    return folder


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def options(folder, suites, data, **more):
    kwargs = {"device": "cpu", "output": folder / "out", "generations": folder / "generations", **more}
    return EvaluationOptions(
        suites=(suites,) if isinstance(suites, str) else suites, data=(str(folder / data),), **kwargs
    )


def work(folder, asked, name, model="model"):
    chosen = load_suite(name)
    return Work(chosen, EvaluatedModel(model, str(folder / model), asked), load(chosen, asked), asked)


def answer(folder, asked, name, texts):
    """Puts responses where generations are kept: one list of texts for each repetition."""
    made = work(folder, asked, name)
    tokenizer = made.subject.tokenizer
    with made.subject.store(made.sampling) as store:
        for number, each in enumerate(texts):
            generations = [Generation(tokenizer(text)["input_ids"], text, False) for text in each]
            store.add([item.ids for item in made.items], [number] * len(each), generations)


def figures(folder, asked, name):
    report = evaluate({"model": str(folder / "model")}, asked)
    assert report == json.loads((asked.output / "evaluation.json").read_text(), parse_constant=float)
    assert report["models"]["model"]["usage"]["generations"] == 0
    return {key: Figure.from_dict(record) for key, record in report["models"]["model"]["figures"][name].items()}


def test_gsm8k_mean_and_std_over_three_generations(folder, tmp_path):
    asked = options(folder, "gsm8k", "gsm8k.jsonl", generations=tmp_path)
    answer(
        folder,
        asked,
        "gsm8k",
        [
            ["#### 2", "so\n#### 1003", "#### 0"],  # 3 right
            ["#### 2", "The answer is 1,003.", "#### 1"],  # 1 by exact match, 2 by the number
            ["\\boxed{2}", "#### $1003", "none"],  # 0 by exact match, 2 by the number
        ],
    )
    found = figures(folder, asked, "gsm8k")
    strict, flexible = found["gsm8k_strict"], found["gsm8k_flexible"]
    assert strict.per_prompt == pytest.approx({"0": 2 / 3, "1": 1 / 3, "2": 1 / 3})
    assert strict.mean == pytest.approx(4 / 9) and strict.std == pytest.approx(np.std([1, 1 / 3, 0]))
    assert strict.n == 3 and strict.low <= strict.mean <= strict.high
    assert flexible.mean == pytest.approx(7 / 9) and flexible.std == pytest.approx(np.std([1, 2 / 3, 2 / 3]))
    assert found["gsm8k_strict_no_answer"].mean == pytest.approx(4 / 9)
    assert found["gsm8k_math_verify"].mean == pytest.approx(7 / 9)
    assert strict.settings["temperature"] == 0.1 and strict.settings["num_generations"] == 3


def test_math_by_string_and_by_mathematics(folder, tmp_path):
    rows = [{"problem": "Half?", "answer": "\\frac{1}{2}"}, {"problem": "Two?", "answer": "2"}]
    write(tmp_path / "math.jsonl", rows)
    asked = options(tmp_path, "math", "math.jsonl", generations=tmp_path / "g", num_generations=1)
    answer(folder, asked, "math", [["\\boxed{0.5}", "It is $\\boxed{ 2 }$."]])
    report = evaluate({"model": str(folder / "model")}, asked)["models"]["model"]["figures"]["math"]
    assert report["math_exact"]["per_prompt"] == {"0": 0, "1": 1}
    assert report["math_verify"]["per_prompt"] == {"0": 1, "1": 1}
    assert grade_exact("no box", "2").value == 0


def test_rouge_takes_the_best_of_several_references(folder, tmp_path):
    asked = options(folder, "rouge", "pairs.jsonl", generations=tmp_path, references_column="all", num_generations=2)
    asked = replace(asked, temperature=1.0)
    answer(folder, asked, "rouge", [["1", "x", "y", "4"], ["y", "y", "y", "4"]])
    found = figures(folder, asked, "rouge")["rouge_1"]
    assert found.per_prompt == {"0": 0.5, "1": 0.5, "2": 0.0, "3": 1.0}
    assert found.mean == 0.5 and found.std == pytest.approx(0.25)


def test_degeneration_counts_tokens_of_the_responses(folder, tmp_path):
    asked = options(folder, "degeneration", "pairs.jsonl", generations=tmp_path)
    answer(folder, asked, "degeneration", [["aaaa", "abcd", "abab", "ab"]])
    found = figures(folder, asked, "degeneration")
    assert found["length"].mean == 14 / 4
    assert found["rep_2"].per_prompt == pytest.approx({"0": 2 / 3, "1": 0, "2": 1 / 3, "3": 0})
    assert found["length_ratio"].per_prompt == pytest.approx({"0": 4 / 2, "1": 4 / 3, "2": 4 / 4, "3": 2 / 5})


def test_likelihood_of_responses_is_that_of_one_forward_after_another(folder, tmp_path):
    asked = options(folder, "likelihood", "pairs.jsonl", output=tmp_path, horizon=2, num_samples=2, seed=5)
    found = figures(folder, asked, "likelihood")
    model, tokenizer = tiny_model(), byte_tokenizer()
    sums, counts, contexts, horizons = [], [], [], []
    for row in map(json.loads, (folder / "pairs.jsonl").read_text().splitlines()):
        prompt, response = tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"])["input_ids"]
        response = [*response, tokenizer.eos_token_id]
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        nll = [-log_probs[len(prompt) - 1 + j, token].item() for j, token in enumerate(response)]
        sums, counts = [*sums, sum(nll)], [*counts, len(nll)]
        contexts, horizons = [*contexts, prompt], [*horizons, response[:2]]
    mean = sum(sums) / sum(counts)
    assert found["cross_entropy"].mean == pytest.approx(mean, abs=1e-5)
    assert found["perplexity"].mean == pytest.approx(math.exp(mean), rel=1e-5)
    # A byte a token, and an end of no byte.
    num_bytes = sum(counts) - len(counts)
    assert found["bits_per_byte"].mean == pytest.approx(sum(sums) / math.log(2) / num_bytes, rel=1e-5)
    report = exposure_bias_from(model, contexts, horizons, 2, 5)
    for name in ("teacher_forced", "free_running", "gap"):
        assert found[name].mean == pytest.approx(report.totals[name].mean, abs=1e-5)
        assert (found[name].low, found[name].high) == pytest.approx(
            (report.totals[name].low, report.totals[name].high), abs=1e-4
        )


def test_likelihood_of_documents_is_what_exbias_measure_reports(folder, tmp_path):
    asked = options(folder, "likelihood", "story.txt", output=tmp_path, context_length=16, horizon=4, num_examples=8)
    found = figures(folder, asked, "likelihood")
    ids = byte_tokenizer()(STORY)["input_ids"]
    stride = (len(ids) - 20 + 1) // 8
    slow = perplexity(tiny_model(), [ids], 16, stride)
    assert found["cross_entropy"].mean == pytest.approx(slow.nats, abs=1e-5)
    assert found["cross_entropy"].n == slow.num_tokens
    assert (found["cross_entropy"].low, found["cross_entropy"].high) == pytest.approx(slow.interval, abs=1e-4)
    assert found["perplexity"].mean == pytest.approx(slow.perplexity, rel=1e-5)
    assert found["bits_per_byte"].mean == pytest.approx(slow.bits, rel=1e-5)


def test_a_token_mean_is_a_ratio_and_pairs_as_one():
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 50, 400).astype(float)
    one, other = counts * generator.normal(3, 0.5, 400), counts * generator.normal(2.8, 0.5, 400)
    ids = [str(i) for i in range(400)]
    figures = [token_mean("x", ids, sums, counts, {}) for sums in (one, other)]
    difference = np.mean([figures[0].per_prompt[i] - figures[1].per_prompt[i] for i in ids])
    assert figures[0].mean == pytest.approx(one.sum() / counts.sum())
    assert difference == pytest.approx(one.sum() / counts.sum() - other.sum() / counts.sum())
    draws = generator.integers(0, 400, (2000, 400))
    ends = np.quantile(one[draws].sum(1) / counts[draws].sum(1), [0.025, 0.975])
    assert (figures[0].low, figures[0].high) == pytest.approx(ends, abs=0.01)


def test_repetitions_become_one_figure():
    one = Figure.over_prompts("x", {"a": 1.0, "b": 0.0, "c": None})
    two = Figure.over_prompts("x", {"a": 0.0, "b": None, "c": None})
    both = combined([one, two])
    assert both.per_prompt == {"a": 0.5, "b": 0.0}
    assert (both.n, both.missing, both.mean, both.std) == (2, 1, 0.25, 0.25)


def test_plain_text_is_cut_into_contexts_and_continuations(folder):
    asked = options(folder, "rouge", "story.txt", context_length=16, max_new_tokens=5, num_examples=3)
    made = work(folder, asked, "rouge")
    for item in made.items:
        start = int(item.id.split(":")[1])
        assert item.prompt == STORY[start : start + 16] and item.references == [STORY[start + 16 : start + 21]]
    assert 3 <= len(made.items) < 6


def test_prompts_go_through_the_chat_template_where_asked(folder):
    plain = work(folder, options(folder, "rouge", "gsm8k.jsonl", **TEMPLATES), "rouge")
    chat = work(folder, options(folder, "rouge", "gsm8k.jsonl", as_conversation=True, **TEMPLATES), "rouge")
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(plain.items[0].ids) == "Q: One and one?"
    assert tokenizer.decode(chat.items[0].ids) == (
        "<|im_start|>user\nQ: One and one?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert plain.items[0].prompt == chat.items[0].prompt and plain.settings() != chat.settings()
    last = work(folder, options(folder, "rouge", "chats.jsonl"), "rouge").items[-1]
    assert last.references == ["2"] and tokenizer.decode(last.ids).startswith("<|im_start|>user\nSay 2")


TEMPLATES = {"prompt_template": "Q: {{ question }}", "completion_template": "{{ answer }}"}


def test_examples_are_spread_over_the_data():
    assert spread(10, None) == spread(10, 20) == list(range(10))
    assert spread(10, 3) == [0, 3, 6]


def test_figures_of_other_tokenizers_have_no_difference_per_token(folder, tmp_path):
    other = byte_tokenizer()
    other.add_tokens([" 1"])
    model = tiny_model(vocab_size=len(other))
    model.save_pretrained(tmp_path / "bigger")
    other.save_pretrained(tmp_path / "bigger")
    asked = options(folder, ("likelihood", "degeneration"), "pairs.jsonl", output=tmp_path, max_new_tokens=4)
    models = {name: str(folder / name) for name in ("model", "other")} | {"bigger": str(tmp_path / "bigger")}
    found = evaluate(models, asked)["differences"]
    assert {"cross_entropy", "gap", "bits_per_byte"} <= set(found["other"]["likelihood"])
    assert set(found["bigger"]["likelihood"]) == {"bits_per_byte"} and "degeneration" not in found["bigger"]


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_is_there_or_names_its_extra(name):
    try:
        found = load_suite(name)
    except ImportError as error:
        assert re.fullmatch(
            rf"The suite `{name}` needs the package `\w+`: `pip install trl-exbias\[\w+\]`.", str(error)
        )
    else:
        assert found.name == name and (found.requests is not None) == (name in JUDGED)


def test_a_missing_package_is_named_with_its_extra():
    chosen = replace(load_suite("rouge"), packages={"no_such_package": "eval"})
    with pytest.raises(ImportError, match=r"`no_such_package`: `pip install trl-exbias\[eval\]`"):
        chosen.check_packages()


@pytest.mark.parametrize(
    ("name", "data", "more", "message"),
    [
        ("gsm8k", "pairs.jsonl", {"prompt_template": "{{ question }}"}, r"`prompt_template` uses \['question'\]"),
        ("rouge", "gsm8k.jsonl", {}, "have no `prompt` .and `completion`., `messages` or `text`"),
        ("rouge", "gsm8k.jsonl", {"prompt_template": "{{ question }}"}, "the data have none"),
        ("rouge", "pairs.jsonl", {"references_column": "golds"}, "golds is not a column of the data"),
        ("rouge", "none.jsonl", {}, "cannot be loaded"),
    ],
)
def test_data_that_do_not_fit_are_named(folder, name, data, more, message):
    with pytest.raises(ValueError, match=message):
        load(load_suite(name), options(folder, name, data, **more))


def test_prompts_that_leave_no_room_are_refused(folder, tmp_path):
    gpt2 = tiny_model("gpt2")  # 256 positions
    gpt2.save_pretrained(tmp_path / "gpt2")
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    asked = options(folder, "rouge", "pairs.jsonl", output=tmp_path, max_new_tokens=250)
    with pytest.raises(ValueError, match="beyond the model's 256 positions"):
        evaluate({"gpt2": str(tmp_path / "gpt2")}, asked)


def test_greedy_responses_are_not_repeated():
    with pytest.raises(ValueError, match="all the same"):
        Sampling(num_generations=2)


def test_embeddings_of_every_response_and_a_violin_for_each_model(folder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import BoW

    words = sentence_transformers.SentenceTransformer(modules=[BoW(vocab=["1", "2", "3", "4"])], device="cpu")
    words.save(str(tmp_path / "words"))
    asked = options(folder, "embeddings", "pairs.jsonl", output=tmp_path / "out", num_generations=2, temperature=1.0)
    asked = replace(asked, generations=tmp_path / "g", references_column="all", embedding_model=str(tmp_path / "words"))
    answer(folder, asked, "embeddings", [["1", "2", "3", "4"], ["1", "1", "3 4", "4"]])
    found = figures(folder, asked, "embeddings")["embedding_distance"]
    distances = np.array([[0, 0], [0, 1], [0, 1 - 1 / math.sqrt(2)], [0, 0]])
    assert list(found.per_prompt.values()) == pytest.approx(distances.mean(1), abs=1e-6)
    assert found.std == pytest.approx(np.std(distances.mean(0)), abs=1e-6)
    # The violin is of responses, not of prompts.
    assert len((tmp_path / "out" / "embedding_distance.csv").read_text().splitlines()) == 1 + 8
    assert (tmp_path / "out" / "embedding_distance.png").read_bytes().startswith(b"\x89PNG")
