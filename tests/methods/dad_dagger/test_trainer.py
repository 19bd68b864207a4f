"""DaD-DAgger against Algorithm 1, its baselines against their own equations."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from trl_exbias.run.rollout_store import RolloutStore

from ...loop.runs import logged, weights
from ...reference import dad_dagger as reference
from ...tiny import byte_tokenizer, conversations, plain_pairs, tiny_model
from .runs import LR, H, T, cut, documents, make, run


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cache", [True, False], ids=["cached", "on-the-fly"])
def test_the_whole_algorithm_equals_the_reference(tmp_path, alpha, cache):
    """Sets after each iteration, every loss, the final weights."""
    done = run(tmp_path, alpha=alpha, num_iterations=3, cache_teacher=cache)
    student, teacher = tiny_model(), tiny_model(seed=7) if alpha < 1 else None
    sizes, losses = reference.train(student, teacher, cut(), H, alpha, 3, 2, LR, done.args.seed)
    assert sizes == [len(cut()) * n for n in (T, T + T - 1, T + 2 * (T - 1))]
    assert logged(done, "loss") == pytest.approx(losses, rel=1e-4)
    expected = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    # As a whole: Adam makes a step of full size of a gradient that is nothing but rounding.
    assert (weights(done) - expected).norm() < 1e-4 * expected.norm()


def test_rollouts_carry_the_datas_labels_from_the_second_position_on(tmp_path):
    run(tmp_path, alpha=1.0)
    rows = RolloutStore(tmp_path / "rollouts" / "iteration-2").read().to_list()
    assert len(rows) == len(cut())
    for row, trajectory in zip(sorted(rows, key=lambda row: row["example_id"]), cut(), strict=True):
        assert row["labels"] == [-100, *trajectory[H + 1 :]]
        assert len(row["input_ids"]) == T


@pytest.mark.parametrize(("aggregate", "used"), [("all", [[], [2], [2, 3], [2, 3, 4]]), ("last", [[], [2], [3], [4]])])
def test_aggregation_policies(tmp_path, aggregate, used):
    made = make(tmp_path, alpha=1.0, num_iterations=4, aggregate=aggregate)
    assert [made.iterations_in_use(i) for i in (1, 2, 3, 4)] == used


def test_the_last_two_of_four(tmp_path):
    made = make(tmp_path, alpha=1.0, num_iterations=4, aggregate="2")
    assert made.iterations_in_use(4) == [3, 4]


def test_four_branches_cost_their_tokens_and_one_context(tmp_path):
    """128 + 4 · 10 tokens, not 4 · 138 (Pozzi 2025's lengths)."""
    text = ["x" * (128 + 10)]
    made = make(
        tmp_path,
        dataset=documents(text),
        alpha=1.0,
        num_iterations=4,
        num_train_epochs=1,
        context_length=128,
        rollout_length=10,
    )
    made.train()
    tokens = logged(made, "num_tokens")
    assert tokens[-1] - tokens[-2] == 128 - 1 + 4 * 10


@pytest.mark.parametrize("options", [{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 32}, {}])
def test_the_loss_is_one_mean_of_the_global_batch(tmp_path, options):
    done = run(tmp_path, num_train_epochs=1, **options)
    _, losses = reference.train(tiny_model(), tiny_model(seed=7), cut(), H, 0.5, 2, 1, LR, 42)
    assert logged(done, "loss") == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("dataset", [plain_pairs(6), conversations(6)], ids=["pairs", "conversations"])
def test_prompt_completion_data_are_cut_from_the_response(tmp_path, dataset):
    done = run(tmp_path, dataset=dataset, alpha=1.0, num_train_epochs=1)
    sft_rows = {}
    for row in done.train_dataset:
        split = row["context_length"]
        assert 1 <= len(row["input_ids"]) - split <= T
        sft_rows.setdefault(row["document"], []).extend(row["input_ids"][split:])
    for index, tokens in sft_rows.items():
        text = byte_tokenizer().decode(tokens, skip_special_tokens=True).strip()
        completion = dataset[index]["completion"]
        assert text == (completion if isinstance(completion, str) else completion[0]["content"]).strip()


def test_lora_students_and_partly_trained_students(tmp_path):
    frozen = run(tmp_path / "a", trainable_modules=["model.layers.1", "model.norm"])
    start = tiny_model().state_dict()
    changed = {name for name, value in frozen.model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed and all(name.startswith(("model.layers.1.", "model.norm.")) for name in changed)
    lora = run(tmp_path / "b", peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    assert logged(lora, "loss")[-1] < logged(lora, "loss")[0]


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_neo", "bloom"])
def test_other_architectures_distil_across_families(tmp_path, architecture):
    """Soft-capped logits, local attention, ALiBi (separate rows): all with a teacher of another shape."""
    done = run(tmp_path, model=tiny_model(architecture), num_iterations=2, num_train_epochs=1)
    student, teacher = tiny_model(architecture), tiny_model(seed=7)
    pairs = reference.gold_pairs(cut(), H, teacher)
    assert logged(done, "loss")[0] == pytest.approx(reference.objective(student, pairs, 0.5).item(), rel=1e-4)


@pytest.mark.parametrize("cache", [True, False])
def test_bf16_is_close_to_fp32(tmp_path, cache):
    half = run(tmp_path / "a", bf16=True, cache_teacher=cache)
    single = run(tmp_path / "b", cache_teacher=cache)
    assert logged(half, "loss") == pytest.approx(logged(single, "loss"), rel=2e-2)


# The named baselines, each against its own equation


def test_plain_fine_tuning_is_trls_sft_on_the_trajectories(tmp_path):
    """n = 1, α = 1: the labels of the horizons, nothing else."""
    from trl import SFTConfig, SFTTrainer

    from ...loop.runs import DEFAULTS

    done = run(tmp_path / "a", alpha=1.0, num_iterations=1, num_train_epochs=3)
    rows = Dataset.from_list(
        [{"input_ids": row, "labels": [-100] * H + row[H:]} for row in cut()],
    )
    settings = dict(DEFAULTS)
    settings |= {"learning_rate": LR, "per_device_train_batch_size": 64, "lr_scheduler_type": "constant"}
    args = SFTConfig(str(tmp_path / "b"), **settings, num_train_epochs=3)
    sft = SFTTrainer(model=tiny_model(), args=args, train_dataset=rows, processing_class=byte_tokenizer())
    sft.train()
    assert logged(done, "loss") == pytest.approx(logged(sft, "loss"), rel=1e-5)
    assert (weights(done) - weights(sft)).norm() < 1e-4 * weights(sft).norm()


def test_next_token_distillation_sees_the_datas_contexts_alone(tmp_path):
    """n = 1 (Hinton et al.): α NLL + (1 − α) KD on true prefixes; no rollouts are made."""
    done = run(tmp_path, alpha=0.25, num_iterations=1, num_train_epochs=1)
    pairs = reference.gold_pairs(cut(), H, tiny_model(seed=7))
    assert logged(done, "loss") == [pytest.approx(reference.objective(tiny_model(), pairs, 0.25).item(), rel=1e-4)]
    assert not (tmp_path / "rollouts").exists()


def test_imitkd_has_no_gradient_from_the_datas_labels(tmp_path):
    """α = 0: other labels on the same contexts, the same weights."""
    first = run(tmp_path / "a", alpha=0.0, num_iterations=1)
    made = make(tmp_path / "b", alpha=0.0, num_iterations=1)
    other = [[-100 if label == -100 else (label + 1) % 200 for label in row] for row in made.train_dataset["labels"]]
    made.train_dataset = made.train_dataset.remove_columns("labels").add_column("labels", other)
    made.train()
    assert torch.equal(weights(first), weights(made))


# Resuming


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        ((1, 2), {}),
        ((1, 2), {"teacher_top_k": 4}),
        ((1, 2), {"cache_teacher": False}),
        ((2,), {"divergence": "reverse_kl"}),
        ((2,), {"divergence": "jensen_shannon", "jsd_beta": 0.3}),
        ((2,), {"gate": "relative"}),
        ((2,), {"gate": "threshold", "divergence": "reverse_kl", "cache_teacher": False}),
    ],
    ids=["hidden", "top", "fly", "reverse", "js", "gated", "gated-fly"],
)
def test_a_distilling_run_resumed_from_any_checkpoint_is_bit_equal(tmp_path, steps, options):
    import shutil

    whole = run(
        tmp_path / "whole", num_iterations=3, num_train_epochs=1, save_strategy="steps", save_steps=1, **options
    )
    for step in steps:
        shutil.copytree(tmp_path / "whole", tmp_path / f"from-{step}")
        # Step n is iteration n's only one: the next one's rollouts are made again.
        for path in [
            *(tmp_path / f"from-{step}").glob("checkpoint-*"),
            *(tmp_path / f"from-{step}").glob("rollouts/*"),
        ]:
            if int(path.name.split("-")[1]) > step:
                shutil.rmtree(path)
        resumed = run(
            tmp_path / f"from-{step}",
            num_iterations=3,
            num_train_epochs=1,
            save_strategy="steps",
            save_steps=1,
            resume=True,
            **options,
        )
        assert torch.equal(weights(resumed), weights(whole))
