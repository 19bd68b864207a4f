"""With the package `alpaca-eval`, where it is installed; its table of difficulties, which it loads from the hub, is drawn."""

import sys
from math import log

import numpy as np
import pytest

from trl_exbias.evaluation.judging import JudgeAnswer, Judged, alpaca_requests, alpaca_win_rate
from trl_exbias.evaluation.judging.alpaca import alpaca_annotations, length_controlled, preference


ITEMS = [Judged(str(i), f"question {i}", f"own {i}", f"baseline {i} " * 3) for i in range(30)]


@pytest.fixture
def package():
    return pytest.importorskip("alpaca_eval", exc_type=ImportError)


@pytest.fixture
def difficulties(package, tmp_path, monkeypatch):
    """Annotations of two gamed baselines, in the form of `df_gamed.csv`."""
    import pandas as pd
    from alpaca_eval.metrics import glm_winrate

    generator = np.random.default_rng(0)
    hard = generator.normal(0, 1, 805)
    rows = [
        {"index": i, "model": name, "preference": float(generator.random() < 0.5), "instruction_difficulty": hard[i],
         "std_delta_len": generator.normal(), "not_gamed_baseline": False}
        for name in ("concise", "verbose") for i in range(805)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "df_gamed.csv", index=False)
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(tmp_path / "df_gamed.csv"))


def test_without_the_package(make_client, monkeypatch):
    monkeypatch.setitem(sys.modules, "alpaca_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'trl-exbias\[alpaca\]'.*use `win_rate`"):
        alpaca_win_rate(make_client(), ITEMS)


@pytest.mark.parametrize("id", ["805", "-1", "first", "0805", "1.0", ""])
def test_other_prompts_have_no_length_controlled_win_rate(make_client, id):
    with pytest.raises(ValueError, match="none of AlpacaEval's prompts, which go from '0' to '804'"):
        alpaca_win_rate(make_client(), [Judged(id, "q", "a", "b")])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (JudgeAnswer("m", tokens=(("m", {"m": log(0.6), "M": log(0.2), "x": log(0.2)}),)), 0.75),
        (JudgeAnswer("M", tokens=(("M", {"M": log(0.9)}),)), 0.0),
        (JudgeAnswer("m"), 1.0),
        (JudgeAnswer("M"), 0.0),
        (JudgeAnswer("both"), None),
        (JudgeAnswer("x", tokens=(("x", {"x": 0.0}),)), None),
        (None, None),
    ],
)
def test_preferences(answer, expected):
    """The text shown first, as the package's `logprob_parser` has them."""
    found = preference(answer, model_first=True)
    assert found == (None if expected is None else pytest.approx(expected))
    if expected is not None:
        assert preference(answer, model_first=False) == pytest.approx(1 - expected)


def test_annotations():
    found = alpaca_annotations(ITEMS[:3], {"0": 0.25, "1": None, "2": 1.0}, annotator="judge")
    assert [(row["index"], row["preference"]) for row in found] == [(0, 1.25), (2, 2.0)]
    assert found[0]["output_1"] == ITEMS[0].reference and found[0]["output_2"] == ITEMS[0].completion


@pytest.mark.usefixtures("package")
def test_the_questions_are_the_packages():
    from alpaca_eval.utils import prompt_to_chatml

    item = Judged("3", "What is {output_2}?", "mine <|im_end|>", "theirs {instruction}")
    system, user = alpaca_requests([item])[0].messages
    assert system["role"] == "system" and system["content"].startswith("You are a highly efficient assistant")
    assert '"instruction": """What is {output_2}?""",' in user["content"]
    assert '"output": """mine <|im_end|>"""' in user["content"] and '"""theirs {instruction}"""' in user["content"]
    assert user["content"].endswith("## Best Model Identifier")
    assert prompt_to_chatml("<|im_start|>user\nx\n<|im_end|>") == [{"role": "user", "content": "x"}]


@pytest.mark.usefixtures("package")
def test_figures(judge, make_client, difficulties):
    """A judge with a taste for length: the model, which is briefer, does better at equal length."""
    generator = np.random.default_rng(1)
    items = [
        Judged(str(i), f"question {i}", "own " + "x" * int(generator.integers(1, 300)), "base " + "y" * 250)
        for i in range(300)
    ]

    def say(body):
        first, second = body["messages"][1]["content"].split('"output": """')[1:]
        first, second = (text.split('"""')[0] for text in (first, second))
        chance = 1 / (1 + np.exp(-(len(first) - len(second)) / 100))
        return [("m" if chance > 0.5 else "M", {"m": log(chance), "M": log(1 - chance)})]

    judge.say = say
    figures = alpaca_win_rate(make_client(), items)
    raw, controlled = figures["alpaca_win_rate"], figures["alpaca_length_controlled_win_rate"]
    assert (raw.n, controlled.n, controlled.missing) == (300, 300, 0)
    assert raw.mean < 0.35 < controlled.mean
    assert {(b["max_tokens"], b["temperature"], b["top_logprobs"]) for b in judge.bodies} == {(1, 1.0, 5)}

    from alpaca_eval.metrics import get_length_controlled_winrate

    annotations = alpaca_annotations(items, raw.per_prompt, annotator="judge")
    theirs = get_length_controlled_winrate(annotations, save_weights_dir=None)
    assert raw.mean == pytest.approx(theirs["win_rate"] / 100)
    assert controlled.mean == pytest.approx(theirs["length_controlled_winrate"] / 100)


@pytest.mark.usefixtures("package")
def test_missing_verdicts_are_left_out(judge, make_client, difficulties):
    judge.say = lambda body: "both" if 'question 7"' in body["messages"][1]["content"] else "m"
    figures = alpaca_win_rate(make_client(), ITEMS)
    assert {(figure.n, figure.missing) for figure in figures.values()} == {(29, 1)}
    assert length_controlled([]) == {}


@pytest.mark.usefixtures("package")
def test_without_the_table_of_difficulties(monkeypatch):
    from alpaca_eval.metrics import glm_winrate
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(**_):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(glm_winrate, "hf_hub_download", offline)
    annotations = alpaca_annotations(ITEMS, {item.id: 1.0 for item in ITEMS}, annotator="judge")
    with pytest.raises(OSError, match="cannot read `df_gamed.csv`.*hub's cache"):
        length_controlled(annotations)
