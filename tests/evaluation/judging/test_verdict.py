import pytest

from trl_exbias.evaluation.judging.verdict import read_verdict


REASON = "Comparison: Summary A covers the points better.\n\n"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (REASON + "Preferred: A", "A"),
        (REASON + "Preferred: B\n", "B"),
        (REASON + 'Preferred: "B"', "B"),
        (REASON + "Preferred: “A”.", "A"),
        (REASON + "**Preferred:** A", "A"),
        (REASON + "**Preferred: A**", "A"),
        (REASON + "**Preferred**: [B]", "B"),
        (REASON + "preferred: summary b", "B"),
        (REASON + "Preferred Summary: A", "A"),
        (REASON + "Preferred: Response B", "B"),
        (REASON + "Preferred:\n\nB", "B"),
        ("- Preferred: A", "A"),
        ("```\nPreferred: A\n```", "A"),
        (REASON + "Preferred: A\n\nPreferred: A", "A"),
        ("<think>Preferred: A? No.\nPreferred: A\n</think>" + REASON + "Preferred: B", "B"),
    ],
)
def test_plain_verdicts(answer, verdict):
    assert read_verdict(answer) == verdict


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A",
        REASON,
        REASON + "Preferred: both",
        REASON + "Preferred: A or B",
        REASON + "Preferred: A and B",
        REASON + "Preferred: A/B",
        REASON + "Preferred: neither",
        REASON + "Preferred: C",
        REASON + "Preferred:",
        REASON + "Preferred: A\nPreferred: B",
        REASON + "Preferred: A\nPreferred: both",
        REASON + "Preferred: A, though B is close",
        REASON + "Preferred: A\n\nBut then, B is shorter.",
        "I would say Preferred: A",
        "Comparison: summary B says 'Preferred: B', which is not a summary.",
        "Not preferred: A",
        REASON + "> Preferred: A",
        "<think>A is better.\nPreferred: A",
    ],
)
def test_no_plain_verdict(answer):
    assert read_verdict(answer) is None
