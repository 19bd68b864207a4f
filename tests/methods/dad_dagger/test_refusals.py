"""What DaD-DAgger refuses, by name."""

import pytest
import torch
from peft import LoraConfig

from trl_exbias import DaDDaggerConfig, DaDDaggerTrainer

from ...families import family
from ...loop.runs import config, logged
from ...tiny import VOCAB_SIZE, byte_tokenizer, tiny_model
from .runs import documents, make, run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"`alpha` must be in \[0, 1\], got 1.5"),
        ({"rollout_length": 0}, "`rollout_length` must be at least 1, got 0"),
        ({"stride": 0}, "`stride` must be at least 1"),
        ({"aggregate": "some"}, "`aggregate` must be 'all', 'last' or a number"),
        ({"kd_temperature": 0}, "`kd_temperature` must be above 0"),
        ({"teacher_top_k": 5, "cache_teacher": False}, "`teacher_top_k` is for labels on disk"),
        ({"rollout_weight": 2.0}, "`sft_weight` and `rollout_weight` must be 1"),
        ({"loss_type": "dft"}, "`loss_type` must be 'nll'"),
        ({"divergence": "js"}, "`divergence` must be one of forward_kl, reverse_kl, jensen_shannon, got 'js'"),
        ({"divergence": "reverse_kl", "alpha": 1.0}, "`divergence='reverse_kl'` is of soft labels, and `alpha=1` has"),
        ({"jsd_beta": 0.2}, "`jsd_beta=0.2` is of `divergence='jensen_shannon'`"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(DaDDaggerConfig, tmp_path, **options)


def test_a_missing_teacher_is_named_before_the_model_is_loaded(tmp_path):
    args = config(DaDDaggerConfig, tmp_path)
    with pytest.raises(ValueError, match="`alpha=0.5` needs a teacher"):
        DaDDaggerTrainer(model=tiny_model(), args=args, train_dataset=documents(), processing_class=byte_tokenizer())


def test_another_tokenizer_is_refused(tmp_path):
    teacher = tiny_model(seed=7)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="need the same tokenizer.*'<extra>'"):
        make(tmp_path / "run", teacher=str(tmp_path / "teacher"))


@pytest.mark.skipif(
    not torch._C._dispatch_has_computed_kernel_for_dispatch_key("aten::_grouped_mm", "CPU"),
    reason="this release of torch has no product of experts on a CPU",
)
def test_a_mixture_of_experts_names_the_setting_that_makes_it_train(tmp_path):
    with pytest.raises(ValueError, match=r"`router_aux_loss_coef=0` \(it is 0.001\), or `alpha=1`"):
        make(tmp_path, model=family("qwen3_moe"))
    done = run(tmp_path, model=family("qwen3_moe"), router_aux_loss_coef=0.0, num_iterations=1, num_train_epochs=1)
    assert logged(done, "loss/soft")


def test_a_teacher_with_fewer_logits_than_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match="made for another vocabulary"):
        make(tmp_path, teacher=tiny_model(seed=7, vocab_size=VOCAB_SIZE - 5))


def test_k_above_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"`teacher_top_k={VOCAB_SIZE + 1}` is above the {VOCAB_SIZE} tokens"):
        make(tmp_path, teacher_top_k=VOCAB_SIZE + 1)


def test_short_documents_are_counted_and_all_short_is_an_error(tmp_path, caplog):
    make(tmp_path / "a", alpha=1.0)
    assert "1 of 3 documents are shorter than a trajectory (12 tokens): dropped" in caplog.text
    with pytest.raises(ValueError, match="No document has the 12 tokens of a trajectory"):
        make(tmp_path / "b", dataset=documents(["tiny"]), alpha=1.0)


def test_a_trajectory_longer_than_the_positions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="A trajectory has 304 tokens .* the model has 256 positions"):
        make(tmp_path, model=tiny_model("gpt2"), context_length=300, alpha=1.0)


def test_modules_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"names no module of this model: 'transformer.h.1'"):
        make(tmp_path, trainable_modules=["transformer.h.1"], alpha=1.0)


def test_trainable_modules_and_lora_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="exclude each other"):
        make(tmp_path, trainable_modules=["model.norm"], peft_config=LoraConfig(r=2), alpha=1.0)
