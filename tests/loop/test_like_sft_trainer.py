"""What TRL 1.16's own tests of `SFTTrainer` ask of ours: where nothing rolls out, the run is TRL's, to the bit."""

import signal

import pytest
import torch
from datasets import Dataset
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from transformers import TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_exbias import (
    BASHConfig,
    BASHTrainer,
    DaDDaggerConfig,
    DaDDaggerTrainer,
    RACConfig,
    RACTrainer,
    ScheduledSamplingConfig,
    ScheduledSamplingTrainer,
    SPINConfig,
    SPINTrainer,
    VerifiedAnswersConfig,
    VerifiedAnswersTrainer,
)

from ..tiny import byte_tokenizer, conversations, plain_pairs, tiny_model
from .runs import DEFAULTS, config, logged, trainer, weights


PLAIN = {"num_iterations": 0}


def texts(num_rows: int = 10) -> Dataset:
    return Dataset.from_list([{"text": f"The number {i} and " + "so on " * (i % 4)} for i in range(num_rows)])


def comparable(done) -> list[dict]:
    """The logs except for what depends on the clock, and our own seconds."""
    timed = ("_runtime", "_per_second")
    return [
        {key: value for key, value in entry.items() if not key.endswith(timed) and not key.startswith("seconds/")}
        for entry in done.state.log_history
    ]


def both(tmp_path, dataset, num_epochs=1, make_model=tiny_model, more=dict, ours=None, **settings):
    """A run of `SFTTrainer` and one of ours with the same settings."""
    trls = SFTTrainer(
        model=make_model(),
        args=SFTConfig(str(tmp_path / "trl"), **{**DEFAULTS, "num_train_epochs": num_epochs, **settings}),
        train_dataset=dataset,
        **{"processing_class": byte_tokenizer(), **more()},
    )
    trls.train()
    args = config(BASHConfig, tmp_path / "ours", **(ours or {**PLAIN, "sft_epochs": num_epochs}), **settings)
    own = trainer(BASHTrainer, args, dataset, make_model(), **more())
    own.train()
    return trls, own


def loss_func(outputs, labels, num_items_in_batch=None):
    loss = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return loss + 0.01 * outputs.logits.square().mean()


def tokenized() -> Dataset:
    return Dataset.from_list([{"input_ids": [*range(i, i + 9)], "labels": [*range(i, i + 9)]} for i in range(10)])


SKIP = {"dataset_kwargs": {"skip_prepare_dataset": True}}
TAKEN = {
    "packing": (texts(), {"packing": True, "max_length": 64}),
    "packing=wrapped": (texts(), {"packing": True, "packing_strategy": "wrapped", "max_length": 32}),
    "padding_free": (texts(), {"padding_free": True, "max_length": None}),
    "streaming": (texts().to_iterable_dataset(), {"max_steps": 5}),
    "truncation_mode": (plain_pairs(10), {"truncation_mode": "keep_end", "max_length": 6}),
    "label_smoothing_factor": (texts(), {"label_smoothing_factor": 0.1}),
    "enable_jit_checkpoint": (texts(), {"enable_jit_checkpoint": True}),
    "max_steps within an epoch": (texts(), {"max_steps": 4}),
    "half an epoch": (texts(), {"num_epochs": 1.5}),
    "accumulation": (texts(), {"num_epochs": 2, "gradient_accumulation_steps": 2}),
    "skip_prepare_dataset": (tokenized(), SKIP),
    "tokenized rows as tensors": (tokenized().with_format("torch"), SKIP),
    "an empty response": (Dataset.from_list([*plain_pairs(8), {"prompt": "a", "completion": ""}]), {}),
    "a prompt that fills max_length": (
        plain_pairs(10).add_item({"prompt": "a" * 40, "completion": "b"}),
        {"max_length": 20},
    ),
    "a last turn of the user": (Dataset.from_list([{"messages": [{"role": "user", "content": "hm"}]}] * 5), {}),
}


@pytest.mark.parametrize("case", TAKEN)
def test_where_nothing_rolls_out_the_run_is_trls_to_the_bit(tmp_path, case):
    dataset, settings = TAKEN[case]
    trls, own = both(tmp_path, dataset, **settings)
    assert comparable(own) == comparable(trls)
    assert torch.equal(weights(own), weights(trls))


def adapters():
    common = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    yield PromptTuningConfig(**common)
    yield PrefixTuningConfig(**common)
    yield PromptEncoderConfig(**common, encoder_hidden_size=8)


FURTHER = {
    "data_collator": lambda: {
        "data_collator": DataCollatorForLanguageModeling(byte_tokenizer().pad_token_id, pad_to_multiple_of=8)
    },
    "compute_loss_func": lambda: {"compute_loss_func": loss_func},
    **{type(adapter).__name__: lambda a=adapter: {"peft_config": a} for adapter in adapters()},
}


@pytest.mark.parametrize("argument", FURTHER)
def test_arguments_that_branches_do_not_go_with_are_taken_where_nothing_rolls_out(tmp_path, argument):
    trls, own = both(tmp_path, texts(), more=FURTHER[argument])
    assert comparable(own) == comparable(trls)
    assert torch.equal(weights(own), weights(trls))


@pytest.mark.parametrize("packing", [False, True])
def test_bash_that_replaces_nothing_is_trls_too(tmp_path, packing):
    """β = 0: an epoch of SFT and two iterations of one are three epochs of TRL's."""
    ours = {"beta": 0.0, "num_iterations": 2, "sft_epochs": 1}
    trls, own = both(tmp_path, texts(), num_epochs=3, ours=ours, packing=packing, max_length=64)
    steps = [entry for entry in comparable(own) if "loss" in entry]
    assert steps == [entry for entry in comparable(trls) if "loss" in entry]
    assert torch.equal(weights(own), weights(trls))


def test_the_sft_phase_of_a_run_that_rolls_out_is_trls_up_to_rounding(tmp_path):
    """Examples share rows there. `max_steps` ends the run with that phase, so that both have one learning-rate schedule."""
    data, settings = plain_pairs(12), {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    given = {"eval_dataset": data.select(range(7))}
    trls = trainer(SFTTrainer, SFTConfig(str(tmp_path / "trl"), **DEFAULTS, **settings), data, **given)
    own = trainer(BASHTrainer, config(BASHConfig, tmp_path / "ours", beta=0.5, **settings), data, **given)
    own.data_collator.base.break_even = 1e6  # attention costs next to nothing here: so that there is something to pack
    trls.train(), own.train()
    for key in ("loss", "grad_norm", "learning_rate", "entropy", "mean_token_accuracy", "num_tokens", "eval_loss"):
        assert logged(own, key) == pytest.approx(logged(trls, key), rel=1e-5), key
    torch.testing.assert_close(weights(own), weights(trls), rtol=0, atol=1e-5)
    assert own.data_collator.base.packed and max(logged(own, "padding_rate")) < 0.1


def test_evaluation_sets_of_any_kind_are_trls_too(tmp_path):
    sets = {"a": texts(4), "b": texts(4).to_iterable_dataset()}
    trls, own = both(
        tmp_path,
        texts(),
        more=lambda: {"eval_dataset": sets},
        eval_strategy="steps",
        eval_steps=2,
        packing=True,
        max_length=64,
    )
    assert comparable(own) == comparable(trls)
    assert {"eval_a_loss", "eval_b_loss"} <= {key for entry in comparable(own) for key in entry}


def test_a_loss_of_ones_own_may_override_compute_loss_where_nothing_rolls_out(tmp_path):
    def overridden(cls):
        class Mine(cls):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
                loss = loss + 0.01 * outputs.logits.square().mean() + 0 * inputs["labels"].sum()
                return (loss, outputs) if return_outputs else loss

        return Mine

    args = SFTConfig(str(tmp_path / "trl"), **{**DEFAULTS, "num_train_epochs": 1})
    trls = trainer(overridden(SFTTrainer), args, texts())
    own = trainer(overridden(BASHTrainer), config(BASHConfig, tmp_path / "ours", **PLAIN), texts())
    trls.train(), own.train()
    assert torch.equal(weights(own), weights(trls))


def test_pictures_are_trained_on_where_nothing_rolls_out(tmp_path, vision_model):
    make_model, processor, rows = vision_model
    trls, own = both(
        tmp_path, rows, make_model=make_model, more=lambda: {"processing_class": processor}, max_length=None
    )
    assert comparable(own) == comparable(trls)
    assert torch.equal(weights(own), weights(trls))


@pytest.fixture(scope="module")
def vision_model():
    """A LLaVA of a few thousand weights, its processor, and rows with pictures."""
    import numpy as np
    from datasets import Features, Image, List
    from PIL import Image as Picture
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        Qwen2Config,
    )

    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
        "{% endif %}<|im_end|>\n{% endfor %}"
    )
    tokenizer = byte_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}

    def make_model():
        torch.manual_seed(0)
        text = Qwen2Config(
            **size, num_key_value_heads=2, vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None
        )
        vision = CLIPVisionConfig(**size, image_size=28, patch_size=14)
        image_id = tokenizer.convert_tokens_to_ids("<image>")
        return LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_id)
        )

    pixels = np.random.default_rng(0).integers(0, 255, (6, 28, 28, 3), dtype="uint8")
    question = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
    rows = {
        "messages": [
            [
                {"role": "user", "content": question},
                {"role": "assistant", "content": [{"type": "text", "text": f"{i}."}]},
            ]
            for i in range(6)
        ],
        "images": [[Picture.fromarray(picture)] for picture in pixels],
    }
    features = Features({**Dataset.from_dict({"messages": rows["messages"]}).features, "images": List(Image())})
    return make_model, processor, Dataset.from_dict(rows, features=features)


def test_trls_own_checkpoint_at_sigterm_is_left_to_it(tmp_path):
    """With `enable_jit_checkpoint`, the handler is TRL's, during the run and not after it."""
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    args = config(BASHConfig, tmp_path, enable_jit_checkpoint=True, max_steps=1, **PLAIN)
    trainer(BASHTrainer, args, texts(), callbacks=[Watch()]).train()
    assert "CheckpointManager" in seen[0].__qualname__
    assert signal.getsignal(signal.SIGTERM) == before


def test_streams_leave_a_record_and_can_be_resumed(tmp_path):
    def run(folder, steps, **options):
        args = config(
            BASHConfig,
            folder,
            max_steps=steps,
            save_strategy="steps",
            save_steps=2,
            lr_scheduler_type="constant",
            **PLAIN,
        )
        done = trainer(BASHTrainer, args, texts().to_iterable_dataset())
        done.train(**options)
        return done

    run(tmp_path / "parts", 2)
    resumed = run(tmp_path / "parts", 5, resume_from_checkpoint=True)
    assert torch.equal(weights(resumed), weights(run(tmp_path / "whole", 5)))
    resumed.save_model()
    assert "Rows" not in (tmp_path / "parts/README.md").read_text()


# One signature, one set of tags, TRL's own configurations


@pytest.mark.parametrize("plain", [True, False])
def test_arguments_are_taken_by_position_as_trls_are(tmp_path, plain):
    class Seen(TrainerCallback):
        pass

    args = config(BASHConfig, tmp_path, **(PLAIN if plain else {}))
    metrics = lambda prediction: {}  # noqa: E731
    made = BASHTrainer(
        tiny_model(),
        args,
        None,
        conversations(4),
        None,
        byte_tokenizer(),
        None,
        metrics,
        [Seen()],
        (None, None),
        None,
        None,
    )
    assert made.compute_metrics is metrics
    assert any(isinstance(callback, Seen) for callback in made.callback_handler.callbacks)


def test_too_many_arguments_and_one_given_twice_are_refused(tmp_path):
    args = config(BASHConfig, tmp_path)
    with pytest.raises(TypeError, match="BASHTrainer takes 15 positional arguments, as SFTTrainer does; 1 more"):
        BASHTrainer(tiny_model(), args, *[None] * 14)
    with pytest.raises(TypeError, match="more than one value for `compute_metrics`"):
        BASHTrainer(tiny_model(), args, None, texts(), None, byte_tokenizer(), None, print, compute_metrics=print)


METHODS = {
    "bash": (BASHTrainer, BASHConfig, {}),
    "rac": (RACTrainer, RACConfig, {}),
    "spin": (SPINTrainer, SPINConfig, {}),
    "verified": (VerifiedAnswersTrainer, VerifiedAnswersConfig, {"verifier": "exact"}),
    "scheduled-sampling": (ScheduledSamplingTrainer, ScheduledSamplingConfig, {}),
    "dad-dagger": (DaDDaggerTrainer, DaDDaggerConfig, {"alpha": 1.0, "context_length": 8, "rollout_length": 4}),
}


@pytest.mark.parametrize("method", METHODS)
def test_models_are_found_under_trls_tag_and_ours(tmp_path, method):
    trainer_class, config_class, settings = METHODS[method]
    made = trainer(trainer_class, config(config_class, tmp_path, **settings), conversations(4))
    assert made.model.model_tags == ["trl", "trl-exbias", method]
    made.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert all(f"- {tag}\n" in card for tag in ("trl", "trl-exbias", method))


def test_plain_sft_has_trls_tag_for_it(tmp_path):
    assert "sft" in trainer(RACTrainer, config(RACConfig, tmp_path, **PLAIN), texts()).model.model_tags


def test_a_configuration_of_trls_says_what_it_becomes(tmp_path, caplog):
    from dataclasses import dataclass

    @dataclass
    class MyConfig(SFTConfig):
        my_field: int = 7

    args = MyConfig(str(tmp_path), **DEFAULTS, num_train_epochs=3, my_field=8)
    made = trainer(BASHTrainer, args, conversations(4))
    assert isinstance(made.args, BASHConfig) and made.args.my_field == 8
    (said,) = [record.message for record in caplog.records if "MyConfig" in record.message]
    assert "1 epochs of SFT and 1 iteration(s) of 3 epochs" in said and "\n" not in said
    plain = TrainingArguments(str(tmp_path), use_cpu=True, bf16=False, num_train_epochs=2, report_to="none")
    assert trainer(BASHTrainer, plain, conversations(4)).args.num_train_epochs == 2
    assert "of the TrainingArguments" in caplog.records[-1].message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 2}, "`max_steps=2` ends the run in its SFT phase of 3 steps: nothing is rolled out"),
        ({"max_steps": 4, "num_iterations": 3}, "ends the run in iteration 1: iterations 2 to 3 are left out"),
        ({"max_steps": 6}, None),
        ({"max_steps": 2, "beta": 0.0}, None),
    ],
)
def test_max_steps_that_leaves_iterations_out_is_said_at_the_start(tmp_path, caplog, settings, message):
    trainer(BASHTrainer, config(BASHConfig, tmp_path, **settings), conversations(12)).train()
    said = [record.message for record in caplog.records if "ends the run" in record.message]
    assert len(said) == (message is not None) and all(message in line for line in said)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"max_steps": 4}, [1 / 3, 2 / 3, 1, 4 / 3]),
        ({"sft_epochs": 0.5, "num_train_epochs": 1}, [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3]),
        ({"sft_epochs": 0, "num_train_epochs": 0.5, "num_iterations": 2}, [1 / 3, 2 / 3, 1, 4 / 3]),
    ],
)
def test_the_logged_epoch_is_how_often_the_data_were_read(tmp_path, settings, epochs):
    done = trainer(BASHTrainer, config(BASHConfig, tmp_path, **settings), conversations(12))
    done.train()
    assert [entry["epoch"] for entry in done.state.log_history if "loss" in entry] == pytest.approx(epochs)


def test_the_seconds_of_the_last_phase_come_with_the_summary(tmp_path):
    done = trainer(BASHTrainer, config(BASHConfig, tmp_path), conversations(8))
    done.train()
    assert "train_runtime" in done.state.log_history[-1] and "seconds/joint" in done.state.log_history[-1]
    assert len(logged(done, "seconds/sft")) == len(logged(done, "seconds/joint")) == 1
