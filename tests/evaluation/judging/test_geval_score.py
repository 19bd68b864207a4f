from math import log

import pytest

from trl_exbias.evaluation.judging.geval_score import expected_score, read_score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("4", 4),
        ("Score: 4", 4),
        ("score: 4.", 4),
        ("**Score:** 3", 3),
        ("Score (1-5): 2", 2),
        ("Rating: 4/5", 4),
        ("Score: 4 out of 5", 4),
        ("Score: 3.5", 3.5),
        ("The text keeps the tone in 9 of 10 sentences.\n\nScore: 4", 4),
        ("Score: 2\n\nIt does not mention 1 of the themes.", 2),
        ("Score: 4\nScore: 4", 4),
        ("<think>Score: 1</think>\nScore: 5", 5),
    ],
)
def test_plain_scores(text, score):
    assert read_score(text, (1, 5)) == score


@pytest.mark.parametrize(
    "text",
    ["", "good", "Score:", "Score: 6", "Score: 0", "Score: high", "Score: 4\nScore: 2", "Score: 3-4", "4/10",
     "I give it a 4, or a 5", "The score is 4", "<think>Score: 4", "Score: number"],
)  # fmt: skip
def test_no_plain_score(text):
    assert read_score(text, (1, 5)) is None


def test_the_expected_score():
    """Σ p(s) s, scaled to the scores; tokens that are none, or off the scale, have no part in it."""
    alternatives = {"4": log(0.5), "5": log(0.25), " 3": log(0.05), "9": log(0.1), "four": log(0.1)}
    tokens = [("Score", {"Score": 0.0}), (":", {":": 0.0}), (" ", {" ": 0.0}), ("4", alternatives)]
    assert expected_score(tokens, (1, 5)) == pytest.approx((0.5 * 4 + 0.25 * 5 + 0.05 * 3) / 0.8)


@pytest.mark.parametrize(
    "tokens",
    [
        ["Score (1-", "5", "): ", "4", "/", "5"],
        ["Score: ", "4", " out of ", "5"],
        ["In ", "5", " words.\n", "Score:", " 4", "\n"],
        ["4"],
        ["**", "4", "**"],
        ["Score", ": 4", "."],
    ],
)
def test_the_place_of_the_score_among_other_digits(tokens):
    def alternatives(token):
        if "4" in token:
            return {token: log(0.75), token.replace("4", "2"): log(0.25)}
        return {token: log(0.5), "1": log(0.5)}

    assert expected_score([(token, alternatives(token)) for token in tokens], (1, 5)) == pytest.approx(3.5)


def test_one_token_in_two_forms_counts_together():
    assert expected_score([("4", {"4": log(0.4), " 4": log(0.2), "1": log(0.4)})], (1, 5)) == pytest.approx(2.8)


@pytest.mark.parametrize("tokens", [[], [("good", {"4": 0.0})], [("4", {})], [("Score: 4\nScore: 3", {"4": 0.0})]])
def test_nothing_to_weigh(tokens):
    assert expected_score(tokens, (1, 5)) is None
