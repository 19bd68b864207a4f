"""BASH against its equations."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.core.data import Example
from trl_exbias.rollouts.noise import derive_seed
from trl_exbias.run.rollout_store import RolloutStore

from ..loop.runs import config, logged, trainer, weights
from ..reference import losses as reference_losses
from ..reference import rollouts as reference_rollouts
from ..tiny import conversations, plain_pairs, tiny_model


def run(tmp_path, dataset=None, model=None, **options) -> BASHTrainer:
    peft_config = options.pop("peft_config", None)
    args = config(BASHConfig, tmp_path, **options)
    done = trainer(BASHTrainer, args, dataset or conversations(12), model, peft_config=peft_config)
    done.train()
    return done


def rollouts(done, iteration: int = 1) -> dict[int, dict]:
    store = RolloutStore(f"{done.args.output_dir}/rollouts/iteration-{iteration}")
    return {row["example_id"]: row for row in store.read().to_list()}


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_rollouts_and_loss_equal_the_reference(tmp_path, beta):
    """With a learning rate of 0 the policy stays the initial model, and one batch of all rows has Algorithm 1's J."""
    done = run(tmp_path, beta=beta, learning_rate=0.0, per_device_train_batch_size=12, sft_epochs=0)
    model = tiny_model()
    options = done.sampling_options(derive_seed(done.args.seed, "rollouts", 1))
    rows, made = [], rollouts(done)
    for index, row in enumerate(done.train_dataset):
        example = Example.from_row(index, row)
        mask = done._mask(example, options.seed)
        assert all(mask) == (beta == 1.0)
        expected = reference_rollouts.mix(model, example.context_ids, example.response_ids, mask, options, example.id)
        assert made[index]["input_ids"] == expected
        assert made[index]["labels"] == example.response_ids, "the label stays gold"
        rows.append((example.context_ids, example.response_ids, expected))
    assert logged(done, "loss") == [pytest.approx(reference_losses.bash(model, rows).item(), rel=1e-4)]


def test_beta_0_is_sft_to_the_bit(tmp_path):
    """One SFT epoch and two iterations of one epoch are three epochs of TRL's own trainer: losses and weights."""
    bash = run(tmp_path / "bash", beta=0.0, num_iterations=2)
    sft = trainer(SFTTrainer, plain_sft_config(tmp_path / "sft", num_train_epochs=3), conversations(12))
    sft.train()
    assert logged(bash, "loss") == logged(sft, "loss")
    assert logged(bash, "learning_rate") == logged(sft, "learning_rate")
    assert torch.equal(weights(bash), weights(sft))
    assert not (tmp_path / "bash" / "rollouts").exists()


def plain_sft_config(output_dir, **options) -> SFTConfig:
    from ..loop.runs import DEFAULTS

    return SFTConfig(output_dir=str(output_dir), **DEFAULTS, **options)


def test_the_sft_phase_is_sft_to_the_bit(tmp_path):
    bash = run(tmp_path / "bash", num_iterations=0, sft_epochs=2)
    sft = trainer(SFTTrainer, plain_sft_config(tmp_path / "sft", num_train_epochs=2), conversations(12))
    sft.train()
    assert logged(bash, "loss") == logged(sft, "loss")
    assert logged(bash, "grad_norm") == logged(sft, "grad_norm")
    assert torch.equal(weights(bash), weights(sft))


@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 2), (1, 4)])
def test_the_loss_is_a_token_mean_of_the_global_batch(tmp_path, batch_size, accumulation):
    """4 rows at once, 2 times 2 or 4 times 1: the same numbers, though responses differ in length."""
    whole = run(tmp_path / "whole", beta=0.5)
    parts = run(
        tmp_path / "parts", beta=0.5, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation
    )
    assert logged(parts, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-5)
    for kind in ("gold", "mixed"):
        assert logged(parts, f"loss/{kind}") == pytest.approx(logged(whole, f"loss/{kind}"), rel=1e-5)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-5)


def test_separate_rows_train_the_same_model(tmp_path):
    shared = run(tmp_path / "shared", beta=0.5)
    args = config(BASHConfig, tmp_path / "separate", beta=0.5)
    separate = trainer(BASHTrainer, args, conversations(12))
    separate._layout_decided, separate.data_collator.shared = True, False
    separate.train()
    assert shared.data_collator.shared
    assert logged(separate, "loss") == pytest.approx(logged(shared, "loss"), rel=1e-5)
    torch.testing.assert_close(weights(separate), weights(shared), rtol=0, atol=1e-5)


def test_rates_are_logged(tmp_path):
    done = run(tmp_path, conversations(40), beta=0.3)
    (replaced,), (changed,) = logged(done, "bash/replaced_rate"), logged(done, "bash/changed_rate")
    made = rollouts(done)
    drawn = changes = total = 0
    for index, row in enumerate(done.train_dataset):
        example = Example.from_row(index, row)
        mask = done._mask(example, derive_seed(done.args.seed, "rollouts", 1))
        drawn, total = drawn + sum(mask), total + len(mask)
        changes += sum(a != b for a, b in zip(made[index]["input_ids"], example.response_ids, strict=True))
    assert replaced == pytest.approx(drawn / total) == pytest.approx(0.3, abs=0.06)
    assert changed == pytest.approx(changes / drawn)
    assert logged(done, "rollout/length") == [pytest.approx(total / 40)]
    assert logged(done, "rollout/tokens_per_second")[0] > 0 and logged(done, "seconds/rollouts")[0] > 0


def test_each_iteration_mixes_anew(tmp_path):
    done = run(tmp_path, beta=0.5, num_iterations=2)
    assert rollouts(done, 1) != rollouts(done, 2)


def test_a_random_part_of_the_rows_is_rolled_out_and_the_rest_trains_on_gold(tmp_path):
    done = run(tmp_path, conversations(20), num_rollouts=8, num_iterations=2)
    first, second = set(rollouts(done, 1)), set(rollouts(done, 2))
    assert len(first) == len(second) == 8 and first != second
    assert done.state.max_steps == 15, "every epoch has all 20 rows"


def test_without_a_gold_term_rows_without_rollouts_are_left_out(tmp_path):
    done = run(tmp_path, conversations(20), num_rollouts=8, sft_weight=0.0)
    assert done.state.max_steps == 5 + 2
    assert logged(done, "loss")[5:] == pytest.approx(logged(done, "loss/mixed"))


def test_weights_of_the_terms_multiply(tmp_path):
    """J = 0.25 J_SFT + 3 J_BASH at every joint step."""
    done = run(tmp_path, sft_weight=0.25, rollout_weight=3.0, sft_epochs=0)
    for loss, gold, mixed in zip(*(logged(done, k) for k in ("loss", "loss/gold", "loss/mixed")), strict=True):
        assert loss == pytest.approx(0.25 * gold + 3 * mixed, rel=1e-5)


def test_positions_without_a_gold_label_are_not_mixed(tmp_path):
    """Tokens that the model does not answer for (tool output, say) stay as they are."""
    rows = [{"input_ids": [5, 6, *range(10, 30)], "labels": [-100] * 2 + [i if i % 2 else -100 for i in range(10, 30)]}]
    # The last labelled stretch is one token long; the whole response is what is asked for here.
    args = config(BASHConfig, tmp_path, beta=1.0, sft_epochs=0)
    done = trainer(BASHTrainer, args, Dataset.from_list(rows * 4))
    example = Example(0, [5, 6], rows[0]["input_ids"][2:], rows[0]["labels"][2:], {})
    assert done._mask(example, 0) == [i % 2 == 1 for i in range(10, 30)]


@pytest.mark.parametrize("dataset", ["plain", "text", "messages", "tokenized"])
def test_every_form_of_data_trains(tmp_path, dataset):
    data = {
        "plain": plain_pairs(8),
        "text": Dataset.from_list([{"text": f"Story {i}: all was well."} for i in range(8)]),
        "messages": Dataset.from_list([{"messages": [*row["prompt"], *row["completion"]]} for row in conversations(8)]),
        "tokenized": Dataset.from_list(
            [{"input_ids": list(range(i + 5)), "labels": [-100, -100, *range(2, i + 5)]} for i in range(8)]
        ),
    }[dataset]
    done = run(tmp_path, data, beta=0.5)
    assert len(rollouts(done)) == 8
    assert len(logged(done, "loss/mixed")) == 2
    assert all(loss > 0 for loss in logged(done, "loss"))


def test_in_a_conversation_gold_keeps_trls_labels_and_the_last_turn_is_mixed(tmp_path):
    """`messages` data: TRL trains on every token; what is rolled out is the last assistant turn."""
    turns = ["Hi.", "Hello!", "2 + 2?", "It is 4."]
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    done = run(tmp_path, Dataset.from_list([{"messages": messages}] * 4), beta=1.0, sft_epochs=0)
    row = done.train_dataset[0]
    assert row["labels"] == row["input_ids"]
    assert len(rollouts(done)[0]["input_ids"]) == len("It is 4.") + 2
    every_turn = run(
        tmp_path / "all", Dataset.from_list([{"messages": messages}] * 4), beta=1.0, sft_epochs=0, rollout_turns="all"
    )
    lengths = sorted(len(row["input_ids"]) for row in rollouts(every_turn).values())
    assert lengths == [len("Hello!") + 2] * 4 + [len("It is 4.") + 2] * 4


def test_lora_trains_the_adapter_alone(tmp_path):
    model = tiny_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    done = run(tmp_path, model=model, peft_config=lora, beta=0.5, num_iterations=2)
    for name, parameter in done.model.get_base_model().named_parameters():
        if "lora" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")])
    assert logged(done, "loss")[-1] != logged(done, "loss")[0]
    assert rollouts(done, 1) != rollouts(done, 2)


def test_bf16_trains(tmp_path):
    done = run(tmp_path, bf16=True, beta=0.5, gradient_checkpointing=True)
    full = run(tmp_path / "full", beta=0.5)
    assert logged(done, "loss") == pytest.approx(logged(full, "loss"), rel=0.03)
    assert {p.dtype for p in done.model.parameters()} == {torch.float32}


def test_a_model_in_bf16_trains(tmp_path):
    done = run(tmp_path, model=tiny_model().bfloat16(), beta=0.5)
    full = run(tmp_path / "full", beta=0.5)
    assert logged(done, "loss")[:3] == pytest.approx(logged(full, "loss")[:3], rel=0.03)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    done = run(tmp_path / "a", beta=0.5, gradient_checkpointing=True)
    plain = run(tmp_path / "b", beta=0.5)
    assert logged(done, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-6)


def test_dft_weights_every_branch_by_its_probability(tmp_path):
    """DFT multiplies each token's NLL by its (detached) probability: smaller losses, other gradients."""
    dft = run(tmp_path / "dft", beta=0.5, loss_type="dft", sft_epochs=0)
    nll = run(tmp_path / "nll", beta=0.5, sft_epochs=0)
    assert 0 < logged(dft, "loss")[0] < logged(nll, "loss")[0]


@pytest.mark.parametrize("beta", [-0.1, 1.5, "high", None, True])
def test_beta_outside_0_1_is_refused(tmp_path, beta):
    with pytest.raises(ValueError, match=r"`beta` must be a probability in \[0, 1\]"):
        config(BASHConfig, tmp_path, beta=beta)
