"""The loop: many phases in one run, and methods of one's own in it."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from trl_exbias import BASHConfig, BASHTrainer, Branch, IterativeSFTConfig, IterativeSFTTrainer

from ..tiny import conversations, tiny_model
from .runs import bash, config, logged, trainer


def test_phases_lie_on_one_axis_under_one_schedule(tmp_path):
    """SFT and two iterations of 3 steps each: the learning rate falls linearly over all 9."""
    done = bash(tmp_path, num_iterations=2)
    steps = [entry["step"] for entry in done.state.log_history if "loss" in entry]
    assert steps == list(range(1, 10))
    assert logged(done, "learning_rate") == pytest.approx([1e-3 * (1 - i / 9) for i in range(9)])
    assert [i for i, entry in enumerate(done.state.log_history) if "bash/replaced_rate" in entry] == [4, 9]
    assert done.state.global_step == done.state.max_steps == 9
    assert done.state.epoch == 3.0


def test_the_schedule_can_restart_with_its_warm_up(tmp_path):
    done = bash(
        tmp_path,
        restart_lr_schedule=True,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=2,
        num_iterations=2,
    )
    assert logged(done, "learning_rate") == pytest.approx([0, 5e-4, 1e-3] * 3)


def test_a_schedule_that_follows_the_metrics_cannot_restart(tmp_path):
    with pytest.raises(ValueError, match="planned ahead"):
        bash(
            tmp_path,
            restart_lr_schedule=True,
            lr_scheduler_type="reduce_lr_on_plateau",
            eval_strategy="epoch",
            eval_dataset=conversations(4),
        )


def test_epochs_may_be_fractions(tmp_path):
    done = bash(tmp_path, sft_epochs=0.5, num_train_epochs=1.5, dataset=conversations(16))
    assert done.state.max_steps == 2 + 6
    assert len(logged(done, "loss/mixed")) == 6


def test_max_steps_cuts_the_plan_and_prolongs_it(tmp_path):
    assert bash(tmp_path / "a", max_steps=5).state.global_step == 5
    longer = bash(tmp_path / "b", max_steps=11)
    assert longer.state.global_step == 11 and len(logged(longer, "loss/mixed")) == 8


def test_rollouts_are_on_disk_before_the_first_step_that_uses_them(tmp_path):
    seen = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen[state.global_step] = [
                k
                for k in (1, 2)
                if (p := Path(args.output_dir, f"rollouts/iteration-{k}/manifest.json")).is_file()
                and json.loads(p.read_text())["complete"]
            ]

    bash(tmp_path, num_iterations=2, callbacks=[Watch()])
    assert seen == {0: [], 1: [], 2: [], 3: [1], 4: [1], 5: [1], 6: [1, 2], 7: [1, 2], 8: [1, 2]}


def test_epochs_callbacks_evaluation_and_saving_keep_their_meaning(tmp_path):
    calls = []

    class Count(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            calls.append("begin")

        def on_epoch_end(self, args, state, control, **kwargs):
            calls.append("end")

        def on_evaluate(self, args, state, control, **kwargs):
            calls.append("evaluate")

    done = bash(
        tmp_path,
        num_iterations=2,
        callbacks=[Count()],
        eval_strategy="epoch",
        save_strategy="epoch",
        eval_dataset=conversations(4),
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    assert calls == ["begin", "end", "evaluate"] * 3
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]
    losses = logged(done, "eval_loss")
    best = Path(done.state.best_model_checkpoint)
    assert best.name == f"checkpoint-{3 * (1 + losses.index(min(losses)))}"
    restored = type(done.model).from_pretrained(best)
    assert all(torch.equal(a, b) for a, b in zip(done.model.parameters(), restored.parameters(), strict=True))


def test_evaluation_is_plain_sft_whatever_the_phase(tmp_path):
    """`eval_loss` is the token mean over gold, equal to that of the same model in an SFT-only run."""
    done = bash(tmp_path, num_iterations=1, eval_dataset=conversations(4))
    by_trainer = done.evaluate()["eval_loss"]
    total, count = 0.0, 0
    for row in done.eval_dataset:
        with torch.no_grad():
            logits = done.model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for i, label in enumerate(row["labels"][1:]):
            if label != -100:
                total, count = total - logits[i, label].item(), count + 1
    assert by_trainer == pytest.approx(total / count, rel=1e-4)


def test_early_stopping_ends_the_run(tmp_path):
    done = bash(
        tmp_path,
        num_iterations=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        eval_dataset=conversations(4),
        learning_rate=0.0,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    assert done.state.global_step == 3


def test_compute_metrics_sees_the_logits(tmp_path):
    def accuracy(prediction):
        return {"rows": len(prediction.label_ids)}

    args = config(BASHConfig, tmp_path, eval_strategy="epoch")
    done = trainer(BASHTrainer, args, conversations(12), eval_dataset=conversations(4), compute_metrics=accuracy)
    done.train()
    assert logged(done, "eval_rows") == [4, 4]


def test_seconds_of_each_phase_and_losses_of_each_kind_are_logged(tmp_path):
    done = bash(tmp_path, num_iterations=2)
    assert len(logged(done, "seconds/sft")) == 1
    assert len(logged(done, "seconds/rollouts")) == len(logged(done, "seconds/joint")) == 2
    for name in ("loss/gold", "loss/mixed", "entropy", "mean_token_accuracy", "num_tokens"):
        assert len(logged(done, name)) >= 6
    assert logged(done, "num_tokens") == sorted(logged(done, "num_tokens"))


def test_logs_averaged_over_steps_are_token_means(tmp_path):
    """One log for the whole joint phase against one for each of its three steps, weighted by their label counts."""
    every = bash(tmp_path / "every", learning_rate=0.0, sft_epochs=0)
    once = bash(tmp_path / "once", learning_rate=0.0, sft_epochs=0, logging_steps=3)
    counts = [
        sum(len(r["input_ids"]) - r["context_length"] for r in every.train_dataset.select(rows))
        for rows in _batches_of(every)
    ]
    mean = sum(a * n for a, n in zip(logged(every, "loss/gold"), counts, strict=True)) / sum(counts)
    assert logged(once, "loss/gold") == [pytest.approx(mean, rel=1e-6)]


def _batches_of(done) -> list[list[int]]:
    """Rows of each batch of the first epoch, by their tokens."""
    rows = {tuple(row["input_ids"]): i for i, row in enumerate(done.train_dataset)}
    loader = done.get_train_dataloader()
    loader.set_epoch(0)
    return [
        [
            rows[tuple(ids[: int(mask.sum())].tolist())]
            for ids, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
        ]
        for b in loader
    ]


def test_neftune_trains_separate_rows_and_says_why(tmp_path, caplog):
    """Its noise depends on the row's length, so a shared row would be noised otherwise."""
    with caplog.at_level(logging.WARNING):
        done = bash(tmp_path, neftune_noise_alpha=5.0)
    assert not done.data_collator.shared
    assert "Every branch is trained as a row of its own: NEFTune" in caplog.text


def test_a_sliding_window_model_trains_rows_beyond_its_window_separately(tmp_path):
    windowed = bash(tmp_path / "a", model=tiny_model("mistral", sliding_window=24))
    args = config(BASHConfig, tmp_path / "b", beta=0.5)
    separate = trainer(BASHTrainer, args, conversations(12), tiny_model("mistral", sliding_window=24))
    separate._layout_decided, separate.data_collator.shared = True, False
    separate.train()
    assert logged(windowed, "loss") == pytest.approx(logged(separate, "loss"), rel=1e-5)


# A method of one's own


class Sampled(IterativeSFTTrainer):
    """Trains on its own samples as they are."""

    branch_kinds = ("sample",)

    def build_branches(self, examples, engine, options):
        samples = engine.sample([e.context_ids for e in examples], options, [e.id for e in examples])
        return [[Branch("sample", s, s)] for s in samples]


def test_a_method_is_a_small_subclass(tmp_path):
    done = trainer(Sampled, config(IterativeSFTConfig, tmp_path), conversations(8))
    done.train()
    assert len(logged(done, "loss/sample")) == 2


def test_a_subclass_that_says_nothing_is_told_what_to_do(tmp_path):
    with pytest.raises(NotImplementedError, match="implement `build_branches`"):
        trainer(IterativeSFTTrainer, config(IterativeSFTConfig, tmp_path), conversations(4)).train()


def test_a_method_that_loses_examples_is_told_so(tmp_path):
    class Forgetful(Sampled):
        def build_branches(self, examples, engine, options):
            return super().build_branches(examples, engine, options)[1:]

    with pytest.raises(ValueError, match="one list of branches for each example: got 3 for 4"):
        trainer(Forgetful, config(IterativeSFTConfig, tmp_path), conversations(4)).train()


def test_several_branches_and_none_train_together(tmp_path):
    class Uneven(Sampled):
        def build_branches(self, examples, engine, options):
            own = super().build_branches(examples, engine, options)
            return [branches * (example.id % 3) for example, branches in zip(examples, own, strict=True)]

    done = trainer(Uneven, config(IterativeSFTConfig, tmp_path), conversations(12))
    done.train()
    assert all(loss > 0 for loss in logged(done, "loss"))
