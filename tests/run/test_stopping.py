"""A run that cannot continue stops, says why and on which rows, and keeps its last good state."""

import pytest
import torch
from transformers import TrainerCallback

from trl_exbias import BASHConfig, BASHTrainer, RACConfig, RACTrainer
from trl_exbias.loop import rollout_phase, rollout_rows
from trl_exbias.run.errors import DegenerateRolloutsError, NonFiniteLossError
from trl_exbias.run.rollout_store import RolloutStore

from ..loop.runs import config, trainer, weights
from ..tiny import conversations, tiny_model


class Poison(TrainerCallback):
    """Puts a NaN into a weight before or after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            next(model.parameters()).data[0, 0] = torch.nan


@pytest.mark.parametrize("joint", [False, True])
def test_a_loss_that_is_no_number_names_its_rows_and_changes_no_weight(joint, tmp_path, monkeypatch):
    args = config(BASHConfig, tmp_path, save_strategy="steps", save_steps=1, beta=0.5)
    run = trainer(BASHTrainer, args, conversations(12))
    right = run.compute_loss

    def overflows(model, inputs, *args, **kwargs):
        """Where row 5 is in the batch."""
        factor = torch.inf if 5 in inputs["exbias_row"].tolist() and ("branch_kinds" in inputs) == joint else 1.0
        return factor * right(model, inputs, *args, **kwargs)

    monkeypatch.setattr(run, "compute_loss", overflows)
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    run.add_callback(Watch())
    with pytest.raises(NonFiniteLossError, match=r"loss is inf at step \d.* rows \[.*5.*\] of the training data"):
        run.train()
    assert (run.state.global_step >= 3) == joint
    assert torch.equal(weights(run), seen[-1]), "the step of that batch was not made"


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    args = config(BASHConfig, tmp_path, save_strategy="steps", save_steps=1)
    run = trainer(BASHTrainer, args, conversations(12), callbacks=[Poison(2)])
    with pytest.raises(NonFiniteLossError, match="not finite after step 2: the checkpoint is not saved"):
        run.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1"]


def test_a_run_whose_rollouts_are_all_degenerate_stops_and_can_go_on(tmp_path):
    options = {"max_new_tokens": 12, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(DegenerateRolloutsError, match="max_degenerate_rate=1"):
        args = config(RACConfig, tmp_path, max_degenerate_rate=0.9, **options)
        trainer(RACTrainer, args, conversations(36)).train()
    stored = {path: path.read_bytes() for path in tmp_path.glob("rollouts/*/*.parquet")}
    assert stored
    args = config(RACConfig, tmp_path, max_degenerate_rate=1.0, **options)
    again = trainer(RACTrainer, args, conversations(36), tiny_model())
    again.train(resume_from_checkpoint=True)
    assert {path: path.read_bytes() for path in tmp_path.glob("rollouts/*/*.parquet")} == stored
    assert again.state.global_step == 18


def _rac(folder, **options):
    args = config(
        RACConfig,
        folder,
        **{
            "sft_epochs": 0,
            "save_strategy": "steps",
            "save_steps": 1,
            "max_new_tokens": 3,
            "max_degenerate_rate": 0.5,
            **options,
        },
    )
    # A random model never ends its answers.
    return trainer(RACTrainer, args, conversations(40))


def test_cut_off_rollouts_are_told_of_with_the_first_shard(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(rollout_rows, "_MIN_SHARD_ROWS", 32)
    told = []
    monkeypatch.setattr(
        rollout_phase, "warn_of_first", lambda *args: told.append(len(list(args[-1].glob("*.parquet"))))
    )
    _rac(tmp_path / "a", max_degenerate_rate=1.0).train()
    assert told == [1], "when the first of two shards was on disk"
    monkeypatch.undo()
    _rac(tmp_path / "b", max_degenerate_rate=1.0).train()
    first = next(record.getMessage() for record in caplog.records if "of the first" in record.getMessage())
    assert "100% cut off at `max_new_tokens`" in first and "Raise `max_new_tokens`" in first


def test_a_run_that_was_cut_off_may_be_resumed_with_a_higher_limit(tmp_path, caplog):
    with pytest.raises(DegenerateRolloutsError, match="with another `max_new_tokens` the phase is rolled out again"):
        _rac(tmp_path).train()
    again = _rac(tmp_path, max_new_tokens=5, max_degenerate_rate=1.0)
    again.train(resume_from_checkpoint=True)
    assert "was made with another `max_new_tokens`" in caplog.text
    rollouts = RolloutStore(tmp_path / "rollouts" / "iteration-1")
    assert rollouts.manifest["header"]["max_new_tokens"] == 5
    assert (tmp_path / "rollouts" / "iteration-1.superseded-1").is_dir()
    # Resumed once more after the phase, with yet another limit: what was trained on stays.
    last = _rac(tmp_path, max_new_tokens=7, max_degenerate_rate=1.0, num_train_epochs=1)
    last.train(
        resume_from_checkpoint=str(sorted(tmp_path.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-2])
    )
    assert rollouts.manifest["header"]["max_new_tokens"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto_find_batch_size": True}, "`auto_find_batch_size=True` is not supported together with rollouts"),
        ({"train_sampling_strategy": "batch_rebalance"}, "'batch_rebalance'` is not supported together with rollouts"),
    ],
)
def test_what_rollouts_do_not_go_with_is_refused_where_something_rolls_out(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(BASHConfig, tmp_path, **options)
    config(BASHConfig, tmp_path, num_iterations=0, **options)
