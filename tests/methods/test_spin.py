"""SPIN against its equation."""

import math
import string

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from trl_exbias import SPINConfig, SPINTrainer
from trl_exbias.core.data import Example
from trl_exbias.rollouts.noise import derive_seed
from trl_exbias.run.rollout_store import RolloutStore

from ..loop.runs import config, logged, trainer, weights
from ..reference import losses as reference_losses
from ..reference import rollouts as reference_rollouts
from ..tiny import conversations, plain_pairs, tiny_model


class Snapshots(TrainerCallback):
    """The weights before each step."""

    def __init__(self):
        self.models = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        # Not a copy: TRL replaces the forward of the model that it trains.
        self.models.append(tiny_model())
        self.models[-1].load_state_dict(model.state_dict())


def run(tmp_path, dataset=None, model=None, callbacks=(), **options) -> SPINTrainer:
    peft_config = options.pop("peft_config", None)
    args = config(SPINConfig, tmp_path, **{"max_new_tokens": 10, "sft_epochs": 0, **options})
    done = trainer(
        SPINTrainer, args, dataset or conversations(8), model, peft_config=peft_config, callbacks=[*callbacks]
    )
    done.train()
    return done


def rollouts(done, iteration: int = 1) -> dict[int, dict]:
    store = RolloutStore(f"{done.args.output_dir}/rollouts/iteration-{iteration}")
    return {row["example_id"]: row for row in store.read().to_list()}


def triples(done, iteration: int = 1) -> list[tuple[list[int], list[int], list[int]]]:
    """(x, y, z) of every row."""
    made, examples = rollouts(done, iteration), enumerate(done.train_dataset)
    examples = [Example.from_row(index, row) for index, row in examples]
    return [(e.context_ids, e.response_ids, made[e.id]["input_ids"]) for e in examples]


@pytest.mark.parametrize(
    ("data", "sampling"),
    [
        (conversations, {}),
        (plain_pairs, {"repetition_penalty": 0.5, "temperature": 0.8, "stop_strings": [*string.ascii_letters]}),
    ],
)
def test_rollouts_loss_and_gradient_equal_the_reference(tmp_path, data, sampling):
    """
    Three steps over all rows: the policy moves away from the reference, which stays the iteration's first policy. However a
    response was drawn, its likelihood is the policy's own.
    """
    snapshots = Snapshots()
    done = run(
        tmp_path,
        data(8),
        callbacks=[snapshots],
        per_device_train_batch_size=8,
        num_train_epochs=3,
        spin_lambda=0.5,
        learning_rate=3e-3,
        max_grad_norm=1e9,
        **sampling,
    )
    first, options = snapshots.models[0], done.sampling_options(derive_seed(done.args.seed, "rollouts", 1))
    rows = triples(done)
    for index, (x, _, z) in enumerate(rows):
        assert z == reference_rollouts.sample(first, x, options, index, done._tokenizer)
    assert logged(done, "teacher/num_tokens") == [sum(2 * len(x) + len(y) + len(z) for x, y, z in rows)]
    for model, loss, norm in zip(snapshots.models, logged(done, "loss"), logged(done, "grad_norm"), strict=True):
        expected = reference_losses.spin(model, first, rows, lam=0.5)
        assert loss == pytest.approx(expected.item(), rel=1e-4)
        model.zero_grad()
        expected.backward()
        gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        assert norm == pytest.approx(torch.stack(gradients).norm().item(), rel=1e-3)
    losses = logged(done, "loss")
    assert losses[0] == pytest.approx(math.log(2), rel=1e-4), "a policy that is its own reference"
    assert losses[2] < losses[1] < losses[0]


def test_each_iteration_has_its_own_reference(tmp_path):
    """The first step of every iteration has the loss of a policy that is its own reference."""
    done = run(tmp_path, num_iterations=2, per_device_train_batch_size=8, num_train_epochs=2, learning_rate=3e-3)
    losses = logged(done, "loss")
    assert [losses[0], losses[2]] == pytest.approx([math.log(2)] * 2, rel=1e-4)
    assert max(losses[1], losses[3]) < losses[0]
    assert triples(done, 1) != triples(done, 2)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 4), (1, 8)])
def test_the_loss_is_a_mean_over_the_pairs_of_the_global_batch(tmp_path, batch_size, accumulation):
    options = {"num_train_epochs": 3, "learning_rate": 3e-3, "sft_weight": 0.5}
    whole = run(tmp_path / "whole", per_device_train_batch_size=8, **options)
    parts = run(
        tmp_path / "parts", per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation, **options
    )
    for key in ("loss", "loss/pair", "loss/gold", "loss/own", "spin/margin", "entropy"):
        assert logged(parts, key) == pytest.approx(logged(whole, key), rel=1e-4, abs=1e-5), key
    # In the first step the margins are zero except for rounding, whose sign means nothing.
    assert logged(parts, "spin/accuracy")[1:] == logged(whole, "spin/accuracy")[1:]
    assert (weights(parts) - weights(whole)).norm() < 1e-4 * weights(whole).norm()


def test_separate_rows_have_the_loss_of_shared_ones(tmp_path, monkeypatch):
    options = {"per_device_train_batch_size": 8, "num_train_epochs": 3, "learning_rate": 3e-3}
    shared = run(tmp_path / "shared", **options)
    monkeypatch.setattr("trl_exbias.loop.joint.check_shared_context", lambda model: "a test")
    separate = run(tmp_path / "separate", **options)
    assert not separate.data_collator.shared
    assert logged(separate, "loss") == pytest.approx(logged(shared, "loss"), rel=1e-4)


def test_prompts_that_are_trained_on_are_no_part_of_a_response(tmp_path):
    """With `completion_only_loss=False` the SFT term covers the prompt; the pair's margin does not."""
    options = {"per_device_train_batch_size": 8, "num_train_epochs": 3, "learning_rate": 3e-3}
    whole = run(tmp_path / "whole", completion_only_loss=False, **options)
    only = run(tmp_path / "only", **options)
    assert logged(whole, "loss/pair") == pytest.approx(logged(only, "loss/pair"), rel=1e-4)
    assert logged(whole, "loss/gold") != pytest.approx(logged(only, "loss/gold"), rel=1e-2)


def test_rows_that_were_not_rolled_out_make_no_pair(tmp_path):
    """With a gold term they train on gold alone."""
    done = run(tmp_path, num_rollouts=3, sft_weight=1.0, per_device_train_batch_size=8, num_train_epochs=2)
    assert len(rollouts(done)) == 3
    total, gold, pair = (logged(done, key) for key in ("loss", "loss/gold", "loss/pair"))
    assert total == pytest.approx([g + p for g, p in zip(gold, pair, strict=True)], rel=1e-4)
    assert pair[0] == pytest.approx(math.log(2), rel=1e-4)


def test_lora_needs_no_second_model(tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    done = run(
        tmp_path,
        peft_config=lora,
        per_device_train_batch_size=8,
        num_train_epochs=4,
        learning_rate=5e-2,
        spin_lambda=1.0,
    )
    losses = logged(done, "loss")
    assert losses[0] == pytest.approx(math.log(2), rel=1e-4)
    assert losses[-1] < losses[0]
    assert logged(done, "spin/accuracy")[-1] > 0.5


def test_bf16_mixed_precision_keeps_the_reference_in_the_same_precision(tmp_path):
    done = run(tmp_path, bf16=True, per_device_train_batch_size=8, spin_lambda=1.0)
    assert logged(done, "loss")[0] == pytest.approx(math.log(2), abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spin_lambda": 0}, "`spin_lambda` must be above 0, got 0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1"),
        ({"loss_type": "dft"}, "SPIN has none"),
    ],
)
def test_bad_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(SPINConfig, tmp_path, **options)


def test_a_truncated_own_response_is_cut_at_max_length(tmp_path):
    done = run(tmp_path, model=tiny_model(), max_new_tokens=60, max_length=64)
    for x, _, z in triples(done):
        assert len(x) + len(z) <= 64
