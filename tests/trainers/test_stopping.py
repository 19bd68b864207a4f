"""A run that cannot go on stops, says why and on which rows, and keeps its last good state."""

import pytest
import torch
from transformers import TrainerCallback

from trl_exbias import BASHConfig, BASHTrainer, RACConfig, RACTrainer
from trl_exbias.trainers.run_stopped import DegenerateRolloutsError, NonFiniteLossError

from ..tiny import conversations, tiny_model
from .runs import config, trainer, weights


class Poison(TrainerCallback):
    """Puts a NaN into a weight before or after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            next(model.parameters()).data[0, 0] = torch.nan


class Explodes(BASHTrainer):
    """Whose loss overflows where row 5 is in the batch."""

    joint = False

    def compute_loss(self, model, inputs, *args, **kwargs):
        factor = torch.inf if 5 in inputs["exbias_row"].tolist() and ("branch_kinds" in inputs) == self.joint else 1.0
        return factor * super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("joint", [False, True])
def test_a_loss_that_is_no_number_names_its_rows_and_changes_no_weight(joint, tmp_path):
    args = config(BASHConfig, tmp_path, save_strategy="steps", save_steps=1, beta=0.5)
    run = trainer(Explodes, args, conversations(12))
    run.joint = joint
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
