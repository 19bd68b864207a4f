"""Training from kept states of the frozen lower layers, against training that computes them in every step."""

import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from trl_exbias.core.frozen_trunk import decoder_layers
from trl_exbias.methods.dad_dagger import trunk_use

from ...loop.runs import logged, weights
from ...tiny import tiny_model
from .runs import H, T, cut, make


LAST = {"trainable_modules": ["model.layers.1", "model.norm"]}
UPPER = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")


def run(tmp_path, **options):
    """A finished run, with `calls`: how often its first layer ran in steps of training."""
    resume = options.pop("resume", None)
    made = make(tmp_path, **options)
    made.calls = 0

    def count(layer, args):
        made.calls += layer.training and torch.is_grad_enabled()

    decoder_layers(made.model)[0].register_forward_pre_hook(count)
    made.train(resume_from_checkpoint=resume)
    return made


def assert_equal(kept, computed):
    assert kept.calls == 0 < computed.calls
    assert logged(kept, "loss") == pytest.approx(logged(computed, "loss"), rel=1e-5)
    assert logged(kept, "grad_norm") == pytest.approx(logged(computed, "grad_norm"), rel=1e-4)
    assert (weights(kept) - weights(computed)).norm() < 1e-5 * weights(computed).norm()


def pairs():
    """Rows whose first trajectories begin after a prompt of a few tokens."""
    return Dataset.from_list([{"prompt": f"{i} + {i} =", "completion": f" {i + i}!!"} for i in range(6)])


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 3, **LAST},
        {
            "dataset": pairs(),
            "alpha": 1.0,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 3,
            "dataloader_num_workers": 1,
            **LAST,
        },
        {"cache_teacher": False, "gradient_checkpointing": True, **LAST},
        {
            "peft_config": UPPER,
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": True},
            "alpha": 1.0,
        },
    ],
    ids=["joint", "hard-accumulated", "teacher-in-steps", "lora-checkpointed"],
)
def test_a_run_is_the_same(tmp_path, options):
    """Gold rows in iteration 1, joint rows after it."""
    kept = run(tmp_path / "kept", **options)
    assert_equal(kept, run(tmp_path / "computed", cache_trunk=False, **options))
    iterations, rows = kept.args.num_iterations, len(kept.train_dataset)
    assert logged(kept, "trunk/computed") == [rows] * iterations
    assert logged(kept, "trunk/reused") == [rows * i for i in range(iterations)]


def test_rows_of_their_own_are_the_same(tmp_path):
    """ALiBi takes no shared layout."""
    options = {"model": tiny_model("bloom"), "trainable_modules": ["transformer.h.1"], "alpha": 1.0}
    kept = run(tmp_path / "kept", **options)
    assert not kept.data_collator.shared
    options["model"] = tiny_model("bloom")
    assert_equal(kept, run(tmp_path / "computed", cache_trunk=False, **options))


def test_a_run_resumes_bit_equal(tmp_path):
    """In its second iteration."""
    whole = run(tmp_path / "whole", save_strategy="epoch", **LAST)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for path in (tmp_path / "part").glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > 3:
            shutil.rmtree(path)
    resumed = run(tmp_path / "part", save_strategy="epoch", resume=True, **LAST)
    assert resumed.state.global_step == whole.state.global_step == 4
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.calls == 0 and logged(resumed, "trunk/computed")[-1] == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"neftune_noise_alpha": 5.0, **LAST},
            "in training, the frozen layers or the embeddings compute something else",
        ),
        ({"trainable_modules": ["model.layers.1", "model.embed_tokens"]}, "the frozen layers read what is trained"),
        ({"num_iterations": 1, "num_train_epochs": 1, **LAST}, "each row is read once"),
    ],
    ids=["neftune", "embeddings", "once"],
)
def test_what_is_in_the_way_is_said_in_one_line(tmp_path, caplog, options, reason):
    done = run(tmp_path, alpha=1.0, **options)
    said = [message for message in caplog.messages if "frozen layers are computed in every step" in message]
    assert len(said) == 1 and reason in said[0]
    assert done.calls > 0 and not (tmp_path / "trunk-states").exists()


def test_a_disk_that_is_too_small_is_said_with_its_numbers(tmp_path, caplog, monkeypatch):
    """Half of what is free is less than gold, and the rollouts of iteration 2, take."""
    positions = len(cut()) * (H + T) + len(cut()) * T
    monkeypatch.setattr(trunk_use, "_GIB", 1 << 10)
    monkeypatch.setattr(trunk_use, "free_bytes", lambda folder: 2 * positions * 32 * 4 - 1)
    done = run(tmp_path, alpha=1.0, **LAST)
    needed = positions * 32 * 4 / (1 << 10)
    assert f"of {positions} tokens takes {needed:.1f} GiB of disk, and of the {2 * needed:.1f} that are" in caplog.text
    assert done.calls > 0 and not (tmp_path / "trunk-states").exists()


def test_overwriting_a_run_removes_its_states(tmp_path):
    run(tmp_path, alpha=1.0, **LAST)
    assert [*(tmp_path / "trunk-states").glob("*/shard-*")]
    again = run(tmp_path, alpha=1.0, overwrite_output_dir=True, **LAST)
    assert logged(again, "trunk/computed") == [len(cut())] * 2
