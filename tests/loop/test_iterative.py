"""The loop: one run of many phases, resumed anywhere, refused where it cannot work."""

import json
import logging
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig

from trl_exbias import (
    BASHConfig,
    BASHTrainer,
    Branch,
    DaDDaggerConfig,
    IterativeSFTConfig,
    IterativeSFTTrainer,
    RACConfig,
    RACTrainer,
    ScheduledSamplingConfig,
)
from trl_exbias.loop import rollout_rows
from trl_exbias.run.checkpoints import WHOLE
from trl_exbias.run.rollout_store import RolloutStoreError

from ..tiny import byte_tokenizer, conversations, plain_pairs, tiny_model
from .runs import DEFAULTS, config, logged, metrics_file, trainer, weights


def bash(tmp_path, dataset=None, model=None, callbacks=None, resume=None, eval_dataset=None, **options) -> BASHTrainer:
    args = config(BASHConfig, tmp_path, **{"beta": 0.5, **options})
    done = trainer(
        BASHTrainer, args, dataset or conversations(12), model, callbacks=callbacks, eval_dataset=eval_dataset
    )
    done.train(resume_from_checkpoint=resume)
    return done


# One run of several phases


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


# Resuming


def resumed_equals_uninterrupted(tmp_path, step: int, trainer_class=BASHTrainer, **options):
    config_class = BASHConfig if trainer_class is BASHTrainer else RACConfig
    options = {
        "num_iterations": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_accumulation_steps": 2,
        **options,
    }

    def make():
        args = config(config_class, tmp_path, per_device_train_batch_size=2, **options)
        return trainer(trainer_class, args, conversations(12), tiny_model(attention_dropout=0.2))

    whole = make()
    whole.train()
    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert torch.equal(weights(resumed), weights(whole))
    after = [entry for entry in whole.state.log_history if entry["step"] > step and "loss" in entry]
    again = [entry for entry in resumed.state.log_history if entry["step"] > step and "loss" in entry]
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in after]


@pytest.mark.parametrize("step", range(1, 9))
def test_a_run_resumed_from_any_checkpoint_is_bit_equal(tmp_path, step):
    """SFT steps 1 to 3, iteration 1 steps 4 to 6, iteration 2 steps 7 to 9; dropout is on."""
    resumed_equals_uninterrupted(tmp_path, step)


@pytest.mark.parametrize("step", [3, 5])
def test_a_resumed_rac_run_is_bit_equal(tmp_path, step):
    resumed_equals_uninterrupted(
        tmp_path, step, RACTrainer, max_new_tokens=8, correction_template="{{ prompt }} {{ reference }}"
    )


@pytest.mark.parametrize("step", [3, 5])
def test_a_resumed_gated_run_is_bit_equal(tmp_path, step):
    resumed_equals_uninterrupted(tmp_path, step, gate="relative", gate_template="{{ prompt }} {{ reference }}")


def test_a_checkpoint_is_made_where_an_iteration_begins(tmp_path):
    """Rollouts need the policy that was about to make them, however seldom the run saves."""
    bash(tmp_path, num_iterations=2, save_strategy="steps", save_steps=100)
    names = sorted(p.name for p in tmp_path.glob("checkpoint-*"))
    assert names == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]


def test_a_run_that_does_not_save_makes_no_checkpoint(tmp_path):
    bash(tmp_path, num_iterations=2)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_an_interrupted_rollout_phase_keeps_its_shards(tmp_path, monkeypatch):
    """Killed while the third of four shards is made: the two on disk are not made again, and the run is bit-equal."""
    monkeypatch.setattr(rollout_rows, "_MIN_SHARD_ROWS", 3)
    monkeypatch.setattr(rollout_rows, "_SHARDS_WANTED", 4)
    whole = bash(tmp_path / "whole", save_strategy="steps", save_steps=100)

    class Killed(BaseException):
        pass

    calls = []

    class Dying(BASHTrainer):
        def build_branches(self, examples, engine, options):
            calls.append([example.id for example in examples])
            if len(calls) == 3:
                raise Killed
            return super().build_branches(examples, engine, options)

    args = config(BASHConfig, tmp_path / "killed", beta=0.5, save_strategy="steps", save_steps=100)
    with pytest.raises(Killed):
        trainer(Dying, args, conversations(12)).train()
    resumed = trainer(Dying, args, conversations(12))
    resumed.train(resume_from_checkpoint=True)
    assert [len(ids) for ids in calls] == [3] * 5, "shards 1 and 2, shard 3 twice, shard 4"
    assert calls[2] == calls[3]
    assert torch.equal(weights(resumed), weights(whole))


def test_a_resumed_run_with_other_settings_is_refused_by_name(tmp_path):
    bash(tmp_path, save_strategy="steps", save_steps=1)
    others = {"beta": (0.5, 0.7), "min_p": (0.0, 0.1), "repetition_penalty": (1.0, 1.2)}
    for name, (was, now) in others.items():
        with pytest.raises(ValueError, match=rf"made by another run: `{name}` was {was} and is now {now}"):
            bash(tmp_path, **{name: now}, resume=str(tmp_path / "checkpoint-4"))


def test_a_checkpoint_of_a_release_without_a_setting_was_made_with_its_default(tmp_path):
    bash(tmp_path, save_strategy="steps", save_steps=1)
    checkpoint = tmp_path / "checkpoint-4"
    record = json.loads((checkpoint / WHOLE).read_text())
    del record["run"]["repetition_penalty"]
    (checkpoint / WHOLE).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"`repetition_penalty` was 1.0 and is now 1.2\. Resume"):
        bash(tmp_path, repetition_penalty=1.2, resume=str(checkpoint))
    bash(tmp_path, resume=str(checkpoint))


def test_rollouts_are_told_apart_by_sampling_settings_that_are_used(tmp_path):
    """Those that are off are not named: earlier rollouts, which were made without them, are read as before."""
    used = {"min_p": 0.1, "repetition_penalty": 1.2, "stop_strings": ["\n\n"]}
    plain, sampled = config(RACConfig, tmp_path), config(RACConfig, tmp_path, **used)
    assert sampled.rollout_settings() == plain.rollout_settings() | used
    assert not used.keys() & plain.rollout_settings().keys()


def test_a_resumed_run_without_its_rollouts_is_refused(tmp_path):
    bash(tmp_path, save_strategy="steps", save_steps=1)
    for path in (tmp_path / "rollouts/iteration-1").iterdir():
        path.unlink()
    with pytest.raises(RolloutStoreError, match="manifest.json is missing"):
        bash(tmp_path, resume=str(tmp_path / "checkpoint-4"))


def test_rollouts_of_a_lost_timeline_are_set_aside(tmp_path, caplog):
    """Resumed from before the rollouts, with weights that come out differently (here: nudged on the way)."""
    bash(tmp_path, save_strategy="steps", save_steps=1)

    class Nudge(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                next(model.parameters()).data.add_(1e-3)

    args = config(BASHConfig, tmp_path, beta=0.5, save_strategy="steps", save_steps=1)
    with caplog.at_level(logging.WARNING):
        trainer(BASHTrainer, args, conversations(12), callbacks=[Nudge()]).train(str(tmp_path / "checkpoint-1"))
    assert (tmp_path / "rollouts" / "iteration-1.superseded-1" / "manifest.json").is_file()
    assert "made by another policy" in caplog.text


# The run directory


def test_the_run_leaves_a_record(tmp_path):
    model = tiny_model()
    model.config._name_or_path, model.config._commit_hash = "me/tiny", "1" * 40
    done = bash(tmp_path, model=model, hub_token="hf_secret", num_iterations=1)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["model"], record["model_revision"]) == ("me/tiny", "1" * 40)
    assert record["method"] == "BASH" and record["rows"] == 12
    assert record["config"]["beta"] == 0.5
    assert record["versions"]["trl"] == trl.__version__
    assert len(record["data"]) == 32
    assert "hf_secret" not in (tmp_path / "run.json").read_text()
    entries = metrics_file(tmp_path)
    assert [entry["loss"] for entry in entries if "loss" in entry] == logged(done, "loss")


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path):
    bash(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ValueError, match=r"already holds a run .*resume_from_checkpoint=True.*overwrite_output_dir=True"
    ):
        bash(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_is_written_over_when_told_to(tmp_path):
    bash(tmp_path, save_strategy="epoch")
    (tmp_path / "notes.txt").write_text("mine")
    bash(tmp_path, overwrite_output_dir=True, beta=0.9)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob("checkpoint-*"))
    assert len(metrics_file(tmp_path)) == len([e for e in metrics_file(tmp_path) if e["step"] <= 6])


# What is refused, and accepted as TRL accepts it


def test_trls_own_config_is_accepted(tmp_path):
    options = dict(DEFAULTS)
    args = SFTConfig(output_dir=str(tmp_path), num_train_epochs=2, **options)
    done = trainer(BASHTrainer, args, conversations(8))
    done.train()
    assert isinstance(done.args, BASHConfig) and done.args.beta == 0.2
    assert done.state.max_steps == 2 + 4


def test_another_methods_config_is_refused(tmp_path):
    with pytest.raises(TypeError, match="BASHTrainer takes a BASHConfig, got a RACConfig"):
        trainer(BASHTrainer, config(RACConfig, tmp_path), conversations(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True}, "`packing=True` is not supported together with branches"),
        ({"padding_free": True}, "`padding_free=True` is not supported together with branches"),
        ({"truncation_mode": "keep_end"}, "only 'keep_start' is supported"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is not supported"),
        ({"num_iterations": -1}, "`num_iterations` must be 0 or more, got -1"),
        ({"sft_epochs": -1}, "`sft_epochs` must be 0 or more"),
        ({"num_iterations": 0, "sft_epochs": 0}, "leave nothing to train"),
        ({"num_rollouts": 0}, "`num_rollouts` must be at least 1"),
        ({"rollout_engine": "magic"}, "`rollout_engine` must be one of transformers"),
        ({"rollout_turns": "first"}, "`rollout_turns` must be one of last, all"),
        ({"temperature": -1}, "`temperature` must be 0"),
        ({"top_p": 0}, r"`top_p` must be in \(0, 1\]"),
        ({"top_k": -2}, "`top_k` must be 0"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be above 0; 1 is off, got 0"),
        ({"stop_strings": "Q:"}, "`stop_strings` must be a list of strings, none of them empty, got 'Q:'"),
        ({"sft_weight": -1}, "`sft_weight` must be 0 or more"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(IterativeSFTConfig, tmp_path, **options)


@pytest.mark.parametrize("config_class", [BASHConfig, ScheduledSamplingConfig, DaDDaggerConfig])
def test_stop_strings_are_refused_where_no_response_ends(tmp_path, config_class):
    with pytest.raises(ValueError, match="`stop_strings` ends responses.*Leave it out"):
        config(config_class, tmp_path, stop_strings=["Q:"])


def test_all_problems_are_listed_at_once(tmp_path):
    with pytest.raises(ValueError, match="3 problems\n(.*\n)*.*`beta`") as error:
        BASHConfig(str(tmp_path), beta=2, top_p=7, packing=True)
    assert "`top_p`" in str(error.value) and "`packing=True`" in str(error.value)


class Unloadable:
    """Stands for a model that must not be touched."""

    def __getattr__(self, name):
        raise AssertionError(f"the model was touched: {name}")


@pytest.mark.parametrize(
    ("dataset", "options", "error", "message"),
    [
        (Dataset.from_list([{"prompt": "a", "answer": "b"}]), {}, ValueError, "no `completion` column"),
        (Dataset.from_list([{"prompt": "a", "completion": ""}]), {}, ValueError, "empty response"),
        (plain_pairs().to_iterable_dataset(), {}, TypeError, "`IterableDataset` cannot be rolled out"),
        (None, {}, ValueError, "`train_dataset` is required"),
        (plain_pairs(), {"data_collator": object()}, ValueError, "`data_collator` is not supported"),
        (plain_pairs(), {"compute_loss_func": print}, ValueError, "`compute_loss_func` is not supported"),
        (
            conversations(),
            {"processing_class": byte_tokenizer(chat_template=None)},
            ValueError,
            "conversational, but the tokenizer has no chat template",
        ),
    ],
)
def test_bad_input_is_refused_before_the_model_is_touched(tmp_path, dataset, options, error, message):
    args = config(BASHConfig, tmp_path / "run")
    options = {"processing_class": byte_tokenizer(), **options}
    with pytest.raises(error, match=message):
        BASHTrainer(model=Unloadable(), args=args, train_dataset=dataset, **options)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        BASHTrainer(Unloadable(), config(BASHConfig, tmp_path), train_dataset=plain_pairs(), processing_class=tokenizer)


def test_a_prompt_that_fills_max_length_is_refused_with_a_count(tmp_path):
    rows = plain_pairs(6).to_list() + [{"prompt": "x" * 100, "completion": "y"}]
    with pytest.raises(ValueError, match=r"1 of 7 rows have no response token within `max_length=64`"):
        trainer(BASHTrainer, config(BASHConfig, tmp_path / "run", max_length=64), Dataset.from_list(rows))
    assert not (tmp_path / "run").exists()


def test_conversations_cut_before_their_last_response_train_on_what_is_left(tmp_path, caplog):
    long = [{"role": ("user", "assistant")[i % 2], "content": "word " * 6} for i in range(4)]
    rows = [{"messages": long}] + [{"messages": long[:2]}] * 3
    with caplog.at_level(logging.WARNING):
        done = bash(tmp_path, Dataset.from_list(rows), max_length=128, sft_epochs=0)
    assert "1 of 4 rows keep no token of their last response" in caplog.text
    ids = {int(i) for i in done._joint_data._places[0]}
    assert ids == {1, 2, 3}


def test_prompt_learning_adapters_are_refused(tmp_path):
    from peft import PromptTuningConfig

    with pytest.raises(ValueError, match="Prompt-learning adapters"):
        trainer(
            BASHTrainer,
            config(BASHConfig, tmp_path),
            conversations(4),
            peft_config=PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        )


def test_the_callers_objects_are_not_changed(tmp_path):
    dataset, columns = conversations(8), ["prompt", "completion"]
    args = SFTConfig(output_dir=str(tmp_path), **DEFAULTS)
    before = args.to_dict()
    trainer(BASHTrainer, args, dataset).train()
    assert args.to_dict() == before
    assert dataset.column_names == columns


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
