import pytest

from trl_exbias.comparing.compute import Compute
from trl_exbias.comparing.equal_compute import Price, answered, calibrated, spent, steps_for
from trl_exbias.comparing.forecast import Forecast


def phase(iteration, steps, tokens, rollout_tokens=0, label_tokens=0, online_tokens=0):
    return {
        "iteration": iteration,
        "steps": steps,
        "tokens": tokens,
        "rollout_tokens": rollout_tokens,
        "label_tokens": label_tokens,
        "online_tokens": online_tokens,
    }


def forecast(method, *phases):
    return Forecast.from_plan({"phases": list(phases)}, draws_in_steps=method == "scheduled-sampling")


# 48 rows of 60 + 40 tokens, 4 a step: SFT 4800; BASH joint 48 · 140 = 6720 and 1920 rolled out.
SFT = forecast("sft", phase(0, 12, 4800), phase(1, 12, 4800))
BASH = forecast("bash", phase(0, 12, 4800), phase(1, 12, 6720, 1920))


def test_a_forecast_is_the_sum_of_the_planned_phases():
    assert (SFT.steps, SFT.trained, SFT.generated, SFT.teacher) == (24, 9600, 0, 0)
    assert (BASH.steps, BASH.trained, BASH.generated, BASH.last_tokens, BASH.sft_tokens) == (
        24,
        11520,
        1920,
        6720,
        4800,
    )


def test_what_is_read_for_labels_is_of_a_teacher_and_what_happens_in_a_step_makes_steps_dearer():
    """Labels read before a phase are there once; a teacher in the step, or draws in it, come with every step."""
    labelled = forecast("rac", phase(0, 12, 4800), phase(1, 12, 7872, 3072, label_tokens=7872))
    assert (labelled.teacher, labelled.generated, labelled.last_tokens) == (7872, 3072, 7872)
    in_step = forecast("dad-dagger", phase(1, 12, 4800, online_tokens=4800))
    assert (in_step.teacher, in_step.generated, in_step.last_tokens) == (4800, 0, 9600)
    drawn = forecast("scheduled-sampling", phase(1, 12, 6720, online_tokens=1920))
    assert (drawn.teacher, drawn.generated, drawn.last_tokens) == (0, 1920, 8640)
    assert steps_for(2 * (6720 + 1920), drawn, Price()) == 24


def test_a_plan_without_rows_is_no_forecast():
    assert forecast("bash", phase(0, None, None)) is None
    assert forecast("bash") is None


def test_plain_sft_gets_the_steps_that_trained_generated_and_teacher_tokens_of_another_are_worth():
    """BASH: 11520 + 1920 = 13440 tokens; SFT trains on 400 a step: 33.6 steps."""
    assert steps_for(Price().of(BASH), SFT, Price()) == 34
    assert steps_for(13440, BASH, Price()) == BASH.steps, "the budget's own run stays as it is"


def test_a_run_over_the_budget_is_shortened_but_not_to_nothing():
    assert steps_for(11440, BASH, Price()) == 24 - round(2000 / 560)
    assert steps_for(100, BASH, Price()) == 13


def test_seconds_are_priced_by_a_finished_run():
    """
    1000 tokens trained in 10 + 20 s: 0.03 s each; 100 drawn and 100 labelled in 40 s: 0.2 s each. SFT at 0.03 · 400 = 12 s
    a step reaches 600 s after 50 steps.
    """
    found = Compute(1000, 100, 100, 24, {"sft": 10.0, "joint": 20.0, "rollouts": 40.0})
    price = Price.in_seconds(found)
    assert price == Price(0.03, 0.2, 0.2)
    assert spent(found, "seconds") == 70 and spent(found, "tokens") == 1200
    assert steps_for(600, SFT, price) == 50
    with pytest.raises(ValueError, match="no seconds of training"):
        Price.in_seconds(Compute(1000, 0, 0, 24, {}))


def test_a_finished_run_corrects_the_forecasts_of_the_others():
    """The first rows were short: 4800 planned, 6000 found. SFT then has 500 a step, and 13440 tokens are 26.88 steps."""
    found = calibrated(SFT, BASH, 6000)
    assert (found.trained, found.steps) == (12000, 24)
    assert steps_for(13440, found, Price()) == 27
    assert calibrated(SFT, BASH, 0) == SFT


def test_answers_are_as_long_as_another_run_gave_them():
    """3072 were the longest possible, 2048 were given: 1024 less to generate, to train on and to label."""
    phases = [phase(0, 12, 4800), phase(1, 12, 7872, 3072, 7872)]
    rac, spin = (forecast(method, *phases) for method in ("rac", "spin"))
    found = answered(rac, spin, Compute(0, 2048, 0, 24))
    assert (found.generated, found.trained, found.last_tokens) == (2048, rac.trained - 1024, rac.last_tokens - 1024)
    assert found.teacher == rac.teacher - 1024 and found.steps == rac.steps
    assert answered(SFT, spin, Compute(0, 2048, 0, 24)) == SFT
