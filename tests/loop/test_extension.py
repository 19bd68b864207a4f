"""A run is extended where its phases so far stay what they were, and refused by name where they would not."""

import json

import pytest
import torch

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.loop import rollout_phase

from ..tiny import conversations
from .runs import config, logged, trainer, weights


SAVING = {"save_strategy": "steps", "save_steps": 2, "beta": 0.5}


def run(folder, resume=None, **settings) -> BASHTrainer:
    """Phases of two steps an epoch."""
    done = trainer(BASHTrainer, config(BASHConfig, folder, **{**SAVING, **settings}), conversations(8))
    done.train(resume_from_checkpoint=resume)
    return done


@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_scheduler_type": "constant"},
        {"restart_lr_schedule": True, "lr_scheduler_type": "linear", "warmup_steps": 1},
    ],
    ids=["constant", "restarting"],
)
def test_a_run_extended_by_an_iteration_is_the_longer_run(tmp_path, schedule):
    run(tmp_path / "parts", **schedule)
    extended = run(tmp_path / "parts", resume=True, num_iterations=2, **schedule)
    whole = run(tmp_path / "whole", num_iterations=2, **schedule)
    assert extended.state.global_step == extended.state.max_steps == 6
    assert torch.equal(weights(extended), weights(whole))
    assert logged(extended, "learning_rate") == logged(whole, "learning_rate")
    record = json.loads((tmp_path / "parts/run.json").read_text())
    assert record["config"]["num_iterations"] == 2


@pytest.mark.parametrize(
    ("begun", "resumed"),
    [
        ({}, {"num_train_epochs": 2}),
        ({"max_steps": 3}, {"max_steps": 6}),
        ({"num_iterations": 0}, {"num_iterations": 0, "sft_epochs": 3}),
        ({"num_iterations": 3, "max_steps": 3}, {"num_iterations": 2}),
    ],
)
def test_epochs_and_steps_may_be_raised_in_the_phase_that_the_run_is_in(tmp_path, begun, resumed):
    run(tmp_path / "parts", lr_scheduler_type="constant", **begun)
    extended = run(tmp_path / "parts", resume=True, lr_scheduler_type="constant", **resumed)
    whole = run(tmp_path / "whole", lr_scheduler_type="constant", **resumed)
    assert extended.state.global_step == whole.state.global_step
    assert torch.equal(weights(extended), weights(whole))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_train_epochs": 2, "num_iterations": 2},
            "iteration 1, which is done, would have had 4 steps instead of 2",
        ),
        ({"sft_epochs": 2, "num_iterations": 2}, "the SFT phase, which is done, would have had 4 steps instead of 2"),
        (
            {"num_train_epochs": 0.5, "num_iterations": 2, "epochs_per_iteration": [1, 0.5]},
            "iteration 2, in which the run is",
        ),
        ({"num_iterations": 1, "max_steps": 4}, "iteration 2, in which the run is, would have 0 steps instead of 2"),
    ],
)
def test_phases_that_are_done_stay_what_they_were(run_of_two_iterations, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        run(run_of_two_iterations, resume=True, **settings)
    changed = next(iter(settings))
    assert f"`{changed}` was" in str(error.value) or "epochs_per_iteration" in str(error.value)


def test_a_schedule_of_the_whole_run_is_planned_anew_and_says_so(run_of_two_iterations, caplog):
    """Linear over 6 steps, then over 8: step 7 takes up the new line where it is."""
    extended = run(run_of_two_iterations, resume=True, num_iterations=3)
    assert logged(extended, "learning_rate") == pytest.approx(
        [1e-3 * (1 - i / 6) for i in range(6)] + [1e-3 * (1 - i / 8) for i in (6, 7)]
    )
    (said,) = [record.message for record in caplog.records if "learning-rate schedule" in record.message]
    assert "at step 6 the rate goes from 0 to 0.00025" in said


@pytest.fixture
def run_of_two_iterations(tmp_path):
    run(tmp_path / "run", num_iterations=2)
    return tmp_path / "run"


def killed(self, shards):
    raise KeyboardInterrupt


def test_a_phase_ends_where_the_next_ones_rollouts_have_a_checkpoint_of_their_own(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rollout_phase.RolloutPhase, "_roll_out", killed)
        run(tmp_path, save_steps=100)
    with pytest.raises(ValueError, match="the SFT phase, which is done"):
        run(tmp_path, resume=True, save_steps=100, sft_epochs=2)
    assert run(tmp_path, resume=True, save_steps=100, num_train_epochs=2).state.global_step == 6


def test_rollouts_begun_before_a_phase_was_extended_are_set_aside(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rollout_phase.RolloutPhase, "_roll_out", killed)
        run(tmp_path)
    assert run(tmp_path, resume=True, sft_epochs=2).state.global_step == 6
    assert (tmp_path / "rollouts/iteration-1.superseded-1").is_dir()
    assert json.loads((tmp_path / "rollouts/iteration-1/manifest.json").read_text())["header"]["policy_step"] == 4
