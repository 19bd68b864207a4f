"""Scheduled sampling: BASH's equations with the weights of every step."""

import pytest

from trl_exbias import ScheduledSamplingConfig, ScheduledSamplingTrainer
from trl_exbias.core.data import Example
from trl_exbias.rollouts.noise import derive_seed

from ..loop.runs import config, logged, trainer, weights
from ..reference import losses as reference_losses
from ..reference import rollouts as reference_rollouts
from ..tiny import conversations
from .test_spin import Snapshots


def run(tmp_path, dataset=None, callbacks=(), resume=None, **options) -> ScheduledSamplingTrainer:
    args = config(ScheduledSamplingConfig, tmp_path, **{"sft_epochs": 0, **options})
    done = trainer(ScheduledSamplingTrainer, args, dataset or conversations(8), callbacks=[*callbacks])
    done.train(resume_from_checkpoint=resume)
    return done


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_every_step_mixes_with_its_own_weights(tmp_path, beta):
    """Cen 2024 Eq. 3-4: three steps over all rows, each against the reference under the weights at its beginning."""
    snapshots = Snapshots()
    done = run(
        tmp_path,
        callbacks=[snapshots],
        beta=beta,
        per_device_train_batch_size=8,
        num_train_epochs=3,
        learning_rate=3e-3,
    )
    assert len(snapshots.models) == 3
    drawn = []
    for step, (model, loss) in enumerate(zip(snapshots.models, logged(done, "loss"), strict=True)):
        options = done.sampling_options(derive_seed(done.args.seed, "scheduled sampling", step))
        rows = []
        for index, row in enumerate(done.train_dataset):
            example = Example.from_row(index, row)
            mask = done._mask(example, options.seed)
            mixed = reference_rollouts.mix(model, example.context_ids, example.response_ids, mask, options, index)
            rows.append((example.context_ids, example.response_ids, mixed))
        assert loss == pytest.approx(reference_losses.bash(model, rows).item(), rel=1e-4)
        drawn.append([mixed for _, _, mixed in rows])
    assert drawn[0] != drawn[1] != drawn[2], "drawn again each time"
    assert len(logged(done, "seconds/mixing")) == 3
    assert not (tmp_path / "rollouts").exists()


@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 2), (1, 4)])
def test_micro_batches_of_a_step_are_mixed_with_the_same_weights(tmp_path, batch_size, accumulation):
    whole = run(tmp_path / "whole", beta=0.5, per_device_train_batch_size=4)
    parts = run(
        tmp_path / "parts", beta=0.5, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation
    )
    assert logged(parts, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-4)
    assert logged(parts, "loss/mixed") == pytest.approx(logged(whole, "loss/mixed"), rel=1e-4)
    assert (weights(parts) - weights(whole)).norm() < 1e-4 * weights(whole).norm()


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path):
    options = {"beta": 0.5, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, "sft_epochs": 1}
    whole = run(tmp_path / "whole", **options)
    resumed = run(tmp_path / "whole", resume=str(tmp_path / "whole" / "checkpoint-3"), **options)
    assert weights(resumed).equal(weights(whole))
    assert logged(resumed, "loss") == logged(whole, "loss")


def test_only_the_chosen_rows_are_mixed(tmp_path):
    done = run(tmp_path, beta=1.0, num_rollouts=3, per_device_train_batch_size=8)
    assert len(done._mixed_rows) == 3
    assert logged(done, "mixing/num_tokens") == [done.response_lengths[[*done._mixed_rows]].sum()]


def test_beta_0_is_sft(tmp_path):
    mixed = run(tmp_path, beta=0.0)
    assert logged(mixed, "loss/mixed") == []
    assert logged(mixed, "seconds/mixing") == []


def test_an_engine_without_the_weights_of_the_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`rollout_engine` must be 'transformers': the weights change at every step"):
        config(ScheduledSamplingConfig, tmp_path, rollout_engine="vllm")
