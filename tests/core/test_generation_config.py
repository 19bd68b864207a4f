"""Configurations that transformers reads and does not write: mended, or refused before training."""

import logging

import pytest

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.core.generation_config import make_saveable

from ..loop.runs import config, trainer
from ..tiny import conversations, tiny_model


WITHOUT_EFFECT = [
    {"do_sample": False, "temperature": 1e-6},
    {"do_sample": False, "temperature": 0.0},
    {"do_sample": False, "top_p": 0.9, "top_k": 20, "min_p": 0.1},
    {"early_stopping": True, "length_penalty": 2.0},
    {"output_scores": True},
]


def generating(settings: dict):
    model = tiny_model()
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


@pytest.mark.parametrize("settings", WITHOUT_EFFECT)
def test_settings_without_effect_are_left_out_and_named(settings, tmp_path, caplog):
    model = generating(settings)
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        model.save_pretrained(tmp_path)
    make_saveable(model)
    model.save_pretrained(tmp_path)
    assert all(f"{name}={value!r}" in caplog.text for name, value in settings.items() if name != "do_sample")
    assert model.generation_config.do_sample in (None, False)


def test_settings_with_effect_stay(caplog):
    model = generating({"do_sample": True, "temperature": 0.6, "top_p": 0.9})
    make_saveable(model)
    assert (model.generation_config.temperature, model.generation_config.top_p) == (0.6, 0.9)
    assert not caplog.text


def test_a_contradiction_is_refused():
    with pytest.raises(ValueError, match="could not be saved with a checkpoint: Greedy methods"):
        make_saveable(generating({"do_sample": False, "num_return_sequences": 2}))


def test_a_configuration_that_cannot_be_written_is_refused():
    model = tiny_model()
    model.config.temperature = 0.6
    with pytest.raises(
        ValueError, match="configuration could not be saved with a checkpoint: Some generation parameters"
    ):
        make_saveable(model)


def test_a_run_saves_its_checkpoints(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    args = config(BASHConfig, tmp_path, num_iterations=0, save_strategy="steps", save_steps=1, max_steps=1)
    trainer(BASHTrainer, args, conversations(4), generating(WITHOUT_EFFECT[0])).train()
    assert (tmp_path / "checkpoint-1" / "generation_config.json").exists()
    assert "Left out of the model's generation config: temperature=1e-06" in caplog.text
