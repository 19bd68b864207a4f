"""What the loop refuses, before a model is loaded where that is possible, and what it takes as TRL does."""

import logging

import pytest
from datasets import Dataset
from trl import SFTConfig

from trl_exbias import (
    BASHConfig,
    BASHTrainer,
    DaDDaggerConfig,
    IterativeSFTConfig,
    RACConfig,
    ScheduledSamplingConfig,
)

from ..tiny import byte_tokenizer, conversations, plain_pairs
from .runs import DEFAULTS, bash, config, trainer


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
