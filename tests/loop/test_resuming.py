"""A run and its folder: resumed from anywhere to the bit, and kept apart from other runs."""

import json
import logging

import pytest
import torch
import trl
from transformers import TrainerCallback

from trl_exbias import BASHConfig, BASHTrainer, RACConfig, RACTrainer
from trl_exbias.loop import rollout_rows
from trl_exbias.run.checkpoints import WHOLE
from trl_exbias.run.rollout_store import RolloutStoreError

from ..tiny import conversations, tiny_model
from .runs import bash, config, logged, metrics_file, trainer, weights


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
