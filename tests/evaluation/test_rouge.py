"""ROUGE against published values, and in scripts that rouge-score's own tokenizer drops."""

import pytest

from trl_exbias.evaluation.rouge import UnicodeTokenizer, rouge, tokenizer_for


pytest.importorskip("rouge_score")


def score(prediction: str, *references: str, **options) -> dict[str, float]:
    return {name: figure.mean for name, figure in rouge({"a": prediction}, {"a": references}, **options).items()}


@pytest.mark.parametrize(
    ("prediction", "rouge_2", "rouge_l"),
    [
        ("police kill the gunman", 1 / 3, 3 / 4),
        ("the gunman kill police", 1 / 3, 2 / 4),
        ("the gunman police killed", 2 / 3, 2 / 4),
    ],
)
def test_the_example_of_lin_2004(prediction, rouge_2, rouge_l):
    """Section 3.1: ROUGE-2 cannot tell the first two candidates apart, ROUGE-L can; all have four words."""
    found = score(prediction, "police killed the gunman", use_stemmer=False)
    assert found["rouge_2"] == pytest.approx(rouge_2) and found["rouge_l"] == pytest.approx(rouge_l)


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("testing", ["testing one two"], {"rouge_1": 1 / 2}),
        ("testing one", ["testing one two"], {"rouge_1": 4 / 5, "rouge_2": 2 / 3, "rouge_l": 4 / 5}),
        ("testing two", ["testing one two"], {"rouge_l": 4 / 5}),
        ("text first", ["first text", "first something"], {"rouge_1": 1, "rouge_2": 0, "rouge_l": 1 / 2}),
        ("", ["testing one two"], {"rouge_1": 0, "rouge_2": 0, "rouge_l": 0}),
    ],
)
def test_values_from_the_tests_of_rouge_score(prediction, references, expected):
    found = score(prediction, *references, use_stemmer=False)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_example_of_rouge_scores_readme():
    """The quick brown fox …: eight words of nine and eight, six of them shared, stemmed."""
    found = score("The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog")
    precision, recall = 6 / 8, 6 / 9
    assert found["rouge_1"] == pytest.approx(2 * precision * recall / (precision + recall))
    precision, recall = 5 / 8, 5 / 9
    assert found["rouge_l"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_the_best_reference_is_taken_for_each_measure_by_itself():
    one, other = "b a d c", "a b x y z"
    both = score("a b c d", one, other)
    apart = [score("a b c d", reference) for reference in (one, other)]
    assert both == {name: max(found[name] for found in apart) for name in both}
    assert apart[0]["rouge_1"] > apart[1]["rouge_1"] and apart[0]["rouge_2"] < apart[1]["rouge_2"]


@pytest.mark.parametrize(
    "text",
    [
        "Привет, как дела?",
        "今日は良い天気ですね。",
        "你好,世界。",
        "สวัสดีครับ",
        "हिन्दी में लिखा",
        "مرحبا بالعالم",
        "한국어 문장입니다",
        "Größe und Übermaß",
    ],
)
def test_every_script_is_equal_to_itself(text):
    figures = rouge({"a": text}, {"a": [text]})
    assert {figure.mean for figure in figures.values()} == {1.0}
    assert {figure.settings["tokenizer"] for figure in figures.values()} == {"unicode"}
    assert not figures["rouge_1"].settings["use_stemmer"]


def test_the_default_tokenizer_drops_other_scripts():
    """What `"auto"` is there for: no token, no value, rather than 0.0 for a perfect prediction."""
    figure = rouge({"a": "Привет"}, {"a": ["Привет"]}, tokenizer="default")["rouge_1"]
    assert (figure.n, figure.missing) == (0, 1)


def test_other_scripts_are_told_apart():
    assert score("кошка спит", "кошка ест") == {
        "rouge_1": pytest.approx(0.5),
        "rouge_2": 0,
        "rouge_l": pytest.approx(0.5),
    }


def test_tokens_of_every_script():
    tokenize = UnicodeTokenizer().tokenize
    assert tokenize("Größe: 12,5 — CAFÉ!") == ["grösse", "12", "5", "café"]
    assert tokenize("हिन्दी में लिखा") == ["हिन्दी", "में", "लिखा"]
    assert tokenize("天気 is カメラ") == ["天", "気", "is", "カ", "メ", "ラ"]
    assert tokenize("วันดี") == ["วั", "น", "ดี"]
    assert tokenize("한국어 문장") == ["한국어", "문장"]
    assert tokenize("ﬁne ½") == ["fine", "1", "2"]
    assert tokenize("…!?") == []


@pytest.mark.parametrize(
    ("text", "pick"),
    [
        ("It was, as Zoë said, “a fine day” for a long walk and a swim in the sea; nobody in the whole town would have "
         "said otherwise, not even the mayor.", "default"),
        ("Der größte Käse überhaupt.", "unicode"),
        ("Привет", "unicode"),
        ("2 + 2 = 4", "default"),
        ("", "default"),
    ],
)  # fmt: skip
def test_the_pick_of_a_tokenizer(text, pick):
    assert tokenizer_for([text]) == pick


def test_the_references_alone_decide_so_that_models_stay_comparable():
    references = {"a": ["a fine day"]}
    for prediction in ("Привет", "a fine day"):
        assert rouge({"a": prediction}, references)["rouge_1"].settings["tokenizer"] == "default"


def test_prompts_without_a_value_are_missing_and_no_zeros():
    figure = rouge({"a": "one two", "c": ""}, {"a": ["one two"], "b": ["three"], "c": ["four"], "d": ["…"]})["rouge_1"]
    assert figure.per_prompt == {"a": 1.0, "c": 0.0}
    assert (figure.mean, figure.n, figure.missing) == (0.5, 2, 2)


def test_stemming_is_recorded_and_changes_values():
    assert score("jumping dogs", "jumped dog")["rouge_1"] == 1.0
    assert score("jumping dogs", "jumped dog", use_stemmer=False)["rouge_1"] == 0.0


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="references of prompt 'a' are a string"):
        rouge({"a": "x"}, {"a": "x"})
    with pytest.raises(ValueError, match="no reference for 2 of 3 predictions: 'b', 'c'"):
        rouge({"a": "x", "b": "x", "c": "x"}, {"a": ["x"], "b": []})
    with pytest.raises(ValueError, match="`tokenizer='words'` is not one of auto, default, unicode"):
        rouge({"a": "x"}, {"a": ["x"]}, tokenizer="words")
