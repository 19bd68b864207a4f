"""Sampling strategies of the Trainer's own, in joint phases and on resume."""

import pytest
import torch

from trl_exbias import BASHConfig, BASHTrainer

from ..tiny import conversations
from .runs import config, logged, trainer, weights


@pytest.mark.parametrize("strategy", ["group_by_length", "sequential"])
def test_a_resumed_run_sees_the_batches_of_one_that_was_not(strategy, tmp_path):
    options = {"train_sampling_strategy": strategy, "save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}

    def run(folder, **kwargs):
        args = config(BASHConfig, folder, beta=0.3, **options)
        made = trainer(BASHTrainer, args, conversations(12))
        made.train(**kwargs)
        return made

    whole = run(tmp_path)
    last = whole.state.global_step
    for step in (last - 1, last - 4):
        for path in tmp_path.glob("checkpoint-*"):
            if int(path.name.split("-")[1]) > step:
                __import__("shutil").rmtree(path)
        again = run(tmp_path, resume_from_checkpoint=True)
        assert logged(again, "loss") == logged(whole, "loss")
        assert torch.equal(weights(again), weights(whole))
