from dataclasses import fields

import pytest
from trl import DatasetMixtureConfig, ModelConfig

from trl_exbias import (
    BASHConfig,
    DaDDaggerConfig,
    RACConfig,
    ScheduledSamplingConfig,
    SPINConfig,
    VerifiedAnswersConfig,
)
from trl_exbias.settings.data_arguments import DataArguments
from trl_exbias.settings.keys import launcher_flags, unknown_key_message, valid_keys


@pytest.mark.parametrize(
    ("command", "config_class"),
    [
        ("bash", BASHConfig),
        ("rac", RACConfig),
        ("dad-dagger", DaDDaggerConfig),
        ("spin", SPINConfig),
        ("scheduled-sampling", ScheduledSamplingConfig),
        ("verified", VerifiedAnswersConfig),
    ],
)
def test_keys_read_from_source_are_the_fields_of_the_imported_classes(command, config_class):
    classes = (config_class, DataArguments, ModelConfig, DatasetMixtureConfig)
    expected = {field.name for cls in classes for field in fields(cls) if field.init}
    assert set(valid_keys(command)) == expected


def test_our_own_options_are_a_frozen_list():
    """Adding an option is a decision: this list is where it is made."""
    from trl import SFTConfig

    own = {field.name for field in fields(RACConfig)} - {field.name for field in fields(SFTConfig)}
    assert own == {
        "chat_template_kwargs",
        "correction_template",
        "divergence",
        "epochs_per_iteration",
        "iteration_patience",
        "jsd_beta",
        "log_completions",
        "max_degenerate_rate",
        "max_new_tokens",
        "min_p",
        "num_iterations",
        "num_rollouts",
        "num_rollouts_to_print",
        "overwrite_output_dir",
        "repetition_penalty",
        "restart_lr_schedule",
        "rollout_batch_tokens",
        "rollout_engine",
        "rollout_turns",
        "rollout_weight",
        "self_teacher",
        "self_teacher_decay",
        "sft_epochs",
        "sft_weight",
        "soft_labels",
        "stop_strings",
        "teacher_top_k",
        "temperature",
        "top_k",
        "top_p",
        "vllm_gpu_memory_utilization",
        "vllm_init_kwargs",
        "vllm_mix_strategy",
        "vllm_server_base_url",
        "vllm_tensor_parallel_size",
        "vllm_timeout",
    }
    assert {field.name for field in fields(BASHConfig)} - {field.name for field in fields(RACConfig)} == {
        "beta",
        "gate",
        "gate_epsilon",
        "gate_template",
    }
    own_answers = {field.name for field in fields(VerifiedAnswersConfig)} - {field.name for field in fields(RACConfig)}
    assert own_answers == {"verifier", "num_samples", "num_kept"}
    assert {field.name for field in fields(SPINConfig)} - {field.name for field in fields(RACConfig)} == {"spin_lambda"}
    assert {field.name for field in fields(ScheduledSamplingConfig)} == {field.name for field in fields(BASHConfig)}
    assert {field.name for field in fields(DaDDaggerConfig)} - {field.name for field in fields(RACConfig)} == {
        "aggregate",
        "alpha",
        "cache_teacher",
        "cache_trunk",
        "context_length",
        "gate",
        "gate_epsilon",
        "kd_temperature",
        "rollout_length",
        "soft_label_dir",
        "stride",
        "teacher_model_init_kwargs",
        "teacher_model_name_or_path",
        "teacher_server_base_url",
        "teachers",
        "trainable_modules",
    }


def test_launcher_flags_are_accelerates():
    assert {"num_processes", "config_file", "use_deepspeed", "accelerate_config"} <= launcher_flags()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("learning_rat", "`learning_rat` is not a known key. Did you mean `learning_rate`?"),
        ("num_iteration", "`num_iteration` is not a known key. Did you mean `num_iterations`?"),
        ("zzzzzz", "`zzzzzz` is not a known key."),
    ],
)
def test_the_nearest_key_is_suggested(key, expected):
    assert unknown_key_message(key, valid_keys("bash")) == expected
