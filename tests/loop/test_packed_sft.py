"""SFT phases and evaluations with several examples in a row: the numbers of a row for each example."""

import numpy as np
import pytest
import torch

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.core.packed_rows import EXAMPLE_LENGTHS

from ..tiny import plain_pairs, tiny_model
from .runs import config, logged, trainer, weights


SETTINGS = {
    "sft_epochs": 2,
    "num_iterations": 1,
    "beta": 0.5,
    "eval_strategy": "epoch",
    "per_device_eval_batch_size": 4,
}


def run(folder, packed: bool = True, settings=None, **options):
    args = config(BASHConfig, folder, **{**SETTINGS, **(settings or {})})
    data = plain_pairs(12)
    done = trainer(BASHTrainer, args, data, eval_dataset=data.select(range(7)), **options)
    # Attention costs next to nothing here, so that there is something to pack.
    done.data_collator.base.break_even = 1e6
    done._rows_decided = not packed
    done.train()
    return done


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    return run(tmp_path_factory.mktemp("padded"), packed=False)


@pytest.mark.parametrize(
    "key",
    ["loss", "grad_norm", "eval_loss", "entropy", "mean_token_accuracy", "eval_mean_token_accuracy", "num_tokens"],
)
def test_a_run_logs_the_numbers_of_a_row_for_each_example(packed, padded, key):
    assert logged(packed, key) == pytest.approx(logged(padded, key), rel=1e-5)


def test_it_trains_the_same_weights(packed, padded):
    torch.testing.assert_close(weights(packed), weights(padded), rtol=0, atol=1e-5)


def test_fewer_slots_are_padding(packed, padded):
    assert len(logged(packed, "padding_rate")) == len(logged(packed, "loss"))
    ours, theirs = (sum(logged(done, "padding_rate")[:6]) for done in (packed, padded))
    assert ours < 0.5 * theirs


def test_parts_of_a_batch_are_the_batch(tmp_path, packed):
    parts = run(tmp_path, settings={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2})
    assert logged(parts, "loss") == pytest.approx(logged(packed, "loss"), rel=1e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path, packed):
    done = run(tmp_path, settings={"gradient_checkpointing": True})
    assert logged(done, "loss") == pytest.approx(logged(packed, "loss"), rel=1e-5)


def test_logits_come_from_a_row_for_each_example(tmp_path):
    """`compute_metrics` and `predict` hand out logits and labels by rows."""
    seen = []

    def compute_metrics(prediction):
        seen.append(np.shape(prediction.label_ids))
        return {"rows": len(prediction.label_ids)}

    done = run(tmp_path, settings={"sft_epochs": 1}, compute_metrics=compute_metrics)
    assert logged(done, "eval_rows") == [7, 7]
    assert done.data_collator.base.packed
    assert len(done.predict(done.eval_dataset).predictions) == 7


@pytest.mark.parametrize(
    ("settings", "options", "reason"),
    [
        ({"neftune_noise_alpha": 5.0}, {}, "NEFTune"),
        ({"accelerator_config": {"dispatch_batches": True}}, {}, "dispatch_batches"),
        ({}, {"model": tiny_model("bloom")}, "reads several examples in a row differently"),
    ],
)
def test_what_cannot_be_packed_is_padded_and_said(tmp_path, caplog, settings, options, reason):
    done = run(tmp_path, settings={"max_steps": 1, **settings}, **options)
    assert not done.data_collator.base.packed
    lines = [record.message for record in caplog.records if "SFT is trained in a row of its own" in record.message]
    assert len(lines) == 1
    assert reason in lines[0]


def test_a_batch_holds_as_many_examples_as_before(packed):
    loader = packed.get_eval_dataloader()
    assert [len(batch[EXAMPLE_LENGTHS]) for batch in loader if EXAMPLE_LENGTHS in batch]
    assert sum(len(next(iter(batch.values()))) for batch in loader) == 7
