import math
from dataclasses import replace

import pytest

from trl_exbias.comparing.alike import Difference
from trl_exbias.comparing.content import BETTER, UNDECIDED, WORSE, figures_and_curves, verdict
from trl_exbias.comparing.report import write_report
from trl_exbias.comparing.sections import warnings
from trl_exbias.comparing.tables import cost_table, decision_table, improvement_table, quality_table, runs_table
from trl_exbias.evaluation.figures import Figure

from .runs import HOSTILE, content, figure


def texts(table, row):
    """A row as a mapping of its columns to text and detail."""
    cells = next(cells for cells in table.rows if cells[0].text.startswith(row))
    return {head: (cell.text, cell.detail) for head, cell in zip(table.head, cells, strict=True)}


def difference(mean, low, high, higher_is_better=True):
    return Figure("x (difference)", mean, low, high, 9, higher_is_better=higher_is_better)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (difference(0.2, 0.1, 0.3), BETTER),
        (difference(0.2, 0.1, 0.3, higher_is_better=False), WORSE),
        (difference(-0.2, -0.3, -0.1), WORSE),
        (difference(-0.2, -0.3, -0.1, higher_is_better=False), BETTER),
        (difference(0.2, -0.1, 0.3), UNDECIDED),
        (difference(0.0, 0.0, 0.0), UNDECIDED),
        (difference(0.2, 0.1, 0.3, higher_is_better=None), None),
        (None, None),
    ],
)
def test_a_difference_is_decided_where_its_interval_leaves_zero_out(found, expected):
    assert verdict(found) == expected


def test_the_decision_is_by_paired_differences_to_the_first_run():
    found = content()
    row = texts(decision_table(found), "rac")
    assert row["verdict"][0] == "better on free running, gap, gsm8k strict"
    assert texts(decision_table(found), "sft")["verdict"][0] == "the reference"
    strict = {entry.name: entry.figures["gsm8k/gsm8k_strict"].per_prompt for entry in found.entries}
    by_hand = sum(strict["rac"][key] - strict["sft"][key] for key in strict["sft"]) / 60
    mean, detail = row["gsm8k strict ↑"]
    assert mean == f"{found.entries[3].figures['gsm8k/gsm8k_strict'].mean:.3f}"
    assert f"Δ +{by_hand:.3f} better" in detail
    assert row["tokens"] == ("15,000", "100.0%")


def test_headlines_are_the_likelihoods_side_by_side_and_the_first_figure_of_each_other_suite():
    found = content()
    likelihoods = tuple(f"likelihood/{name}" for name in ("cross_entropy", "free_running", "gap"))
    assert found.headline_keys == (*likelihoods, "gsm8k/gsm8k_strict"), "a length is neither better nor worse"
    assert replace(found, headline=("degeneration/length",)).headline_keys == ("degeneration/length",)
    with pytest.raises(ValueError, match="there is no figure rouge/rouge_l"):
        _ = replace(found, headline=("rouge/rouge_l",)).headline_keys


def test_a_run_that_missed_the_budget_is_said_to_be_unequal():
    found = content()
    assert texts(decision_table(found), "spin")["tokens"] == ("19,000", "126.7%, unequal")
    assert warnings(found) == ["`spin` consumed 126.7% of the budget: not at equal compute."]


def test_without_equal_compute_tokens_stand_in_proportion_to_the_first_run():
    found = content(equal=None)
    assert texts(decision_table(found), "spin")["tokens"] == ("19,000", "× 1.26")
    assert warnings(found) == []


def test_intervals_over_few_prompts_are_warned_of():
    found = content()
    few = replace(found.entries[1], figures={"gsm8k/gsm8k_strict": figure("gsm8k_strict", 0.2, n=9)})
    assert "over 9 prompts" in warnings(replace(found, entries=(few,), equal=None))[0]


def test_what_was_allowed_to_differ_is_said():
    allowed = (Difference("seed", {"sft": 0, "rac": 1}),)
    assert "`seed`: 0 (sft); 1 (rac)" in warnings(content(allowed=allowed))[0]


def test_a_figure_measured_under_an_allowed_setting_is_still_paired():
    found = content()
    warm = {key: replace(one, settings={"temperature": 0.7}) for key, one in found.entries[3].figures.items()}
    entries = (*found.entries[:3], replace(found.entries[3], figures=warm), found.entries[4])
    with pytest.raises(ValueError, match="temperature"):
        decision_table(replace(found, entries=entries))
    allowed = (Difference("gsm8k/gsm8k_strict: temperature", {}),)
    same = decision_table(replace(found, entries=entries, allowed=allowed))
    assert texts(same, "rac") == texts(decision_table(found), "rac")


def test_costs_are_by_sort_and_phase():
    row = texts(cost_table(content()), "bash")
    assert (row["trained tokens"][0], row["generated tokens"]) == ("13,000", ("2,050", ""))
    assert row["seconds"] == ("180", "sft 60.0\nrollouts 40.0\njoint 80.0")
    assert row["peak memory"] == ("2.24 GiB", "host")
    assert texts(cost_table(content()), "spin")["wall clock s"] == ("200", "2 starts")


def test_improvement_is_the_gain_over_the_untrained_model_by_what_was_spent():
    """RAC's gap fell; the gain is above zero, divided by 0.015 million tokens and by 180 s = 0.05 h."""
    found = content()
    rac, untrained = found.entries[3], found.entries[0]
    gain = -found.difference(rac, "likelihood/gap", to=untrained).mean
    assert gain > 1
    text, detail = texts(improvement_table(found), "gap")["rac"]
    assert text == f"+{gain:.3f}"
    assert f"+{gain / 0.015:.1f} a million tokens" in detail
    assert f"+{gain / 0.05:.1f} an hour" in detail
    assert improvement_table(replace(found, entries=found.entries[1:])) is None


def test_a_model_without_a_figure_has_a_dash():
    found = content()
    bare = replace(found.entries[4], figures={})
    table = quality_table(replace(found, entries=(*found.entries[:4], bare)))
    assert texts(table, "gsm8k/gsm8k_strict")["spin"] == ("–", "")
    nothing = replace(bare, figures={"gsm8k/gsm8k_strict": Figure.over_prompts("gsm8k_strict", {"0": None})})
    row = texts(quality_table(replace(found, entries=(*found.entries[:4], nothing))), "gsm8k/gsm8k_strict")
    assert math.isnan(nothing.figures["gsm8k/gsm8k_strict"].mean) and row["spin"][0] == "–"


def test_own_keys_are_a_column_each():
    assert texts(runs_table(content()), "bash")["beta"][0] == "0.2"
    assert texts(runs_table(content()), "sft")["beta"][0] == ""


def test_an_evaluation_is_read_back_figure_by_figure():
    one = figure("gap", 1.0, higher_is_better=False)
    curve = {"mean": [0.0, 1.0], "low": [0.0, 0.9], "high": [0.0, 1.1]}
    record = {"figures": {"likelihood": {"gap": one.as_dict()}}, "curves": {"likelihood": {"gap": curve}}}
    figures, curves = figures_and_curves(record)
    assert figures == {"likelihood/gap": one} and curves["likelihood/gap"].high == [0.0, 1.1]
    assert figures_and_curves({"figures": {}}) == ({}, {})


def test_markdown_holds_hostile_text_in_blocks_that_it_cannot_end(tmp_path):
    markdown, page = write_report(content(title="a | b <i>"), tmp_path)
    text = markdown.read_text()
    assert text.startswith("# a \\| b \\<i\\>\n")
    assert f"`````text\n{HOSTILE}\n`````" in text, "a longer fence than any in the text"
    for name in ("figures", "curves", "tokens", "seconds"):
        assert f"](plots/{name}.svg)" in text and (tmp_path / "plots" / f"{name}.svg").is_file()
    assert page.is_file()
