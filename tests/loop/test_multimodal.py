"""Text on a multimodal checkpoint: read with its tokenizer, trained whole, saved with its processor."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from trl_exbias import BASHConfig, BASHTrainer, DaDDaggerConfig, DaDDaggerTrainer
from trl_exbias.evaluation.loading import load_model
from trl_exbias.rollouts import SamplingOptions, TransformersEngine
from trl_exbias.rollouts.vllm.policy import check_servable

from ..reference import rollouts as reference
from ..tiny import byte_tokenizer, conversations, tiny_model
from .runs import config, logged


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
ON_A_CPU = SimpleNamespace(dtype="float32", device="cpu", trust_remote_code=False)
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer(folder) -> PreTrainedTokenizerFast:
    """The byte tokenizer, with tokens that stand for an image."""
    plain = byte_tokenizer()
    plain.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<boi>", "<eoi>", "<image>"]})
    plain.save_pretrained(folder)
    images = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}
    return PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=images)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma3")
    own = tokenizer(folder)
    gemma = {"vocab_size": len(own), "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={**TEXT, **gemma},
            vision_config={**VISION, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            boi_token_index=own.convert_tokens_to_ids("<boi>"),
            eoi_token_index=own.convert_tokens_to_ids("<eoi>"),
            image_token_index=own.image_token_id,
        )
    )
    model.save_pretrained(folder)
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(), tokenizer=own, chat_template=own.chat_template, image_seq_length=4
    )
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("given", ["nothing", "tokenizer", "processor"])
def test_text_trains_and_rolls_out(given, checkpoint, tmp_path):
    loader = {"tokenizer": AutoTokenizer, "processor": AutoProcessor}.get(given)
    done = BASHTrainer(
        model=str(checkpoint),
        args=config(BASHConfig, tmp_path / "run", beta=0.3),
        train_dataset=conversations(8),
        processing_class=None if loader is None else loader.from_pretrained(checkpoint),
    )
    ids = done.train_dataset[0]["input_ids"]
    assert done.processing_class.decode(ids).startswith("<|im_start|>user\n0 + 0?"), "no parts of a multimodal message"
    assert done.args.ddp_find_unused_parameters is True
    done.train()
    assert len(logged(done, "loss/mixed")) == 2
    done.save_model(tmp_path / "model")
    assert (tmp_path / "model" / "processor_config.json").exists() == (given != "tokenizer")
    assert isinstance(load_model(tmp_path / "model", ON_A_CPU), Gemma3ForConditionalGeneration)


def test_a_student_with_a_processor_and_a_plain_teacher(checkpoint, tmp_path):
    texts = [{"text": "The fox went out on a chilly night."}] * 2
    done = DaDDaggerTrainer(
        model=str(checkpoint),
        teacher_model=tiny_model(vocab_size=len(AutoTokenizer.from_pretrained(checkpoint))),
        args=config(DaDDaggerConfig, tmp_path, context_length=8, rollout_length=4, num_iterations=1),
        train_dataset=Dataset.from_list(texts),
        processing_class=AutoProcessor.from_pretrained(checkpoint),
    )
    done.train()
    assert logged(done, "loss/soft")


def test_a_model_with_positions_in_three_dimensions(tmp_path):
    """Qwen2.5-VL keeps a position of its own between forwards."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={**TEXT, "vocab_size": 270, "rope_parameters": rope},
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 32,
            },
            image_token_id=265,
            video_token_id=266,
            vision_start_token_id=267,
            vision_end_token_id=268,
        )
    ).eval()
    prompts, options = [[1, 2, 3], [4], [5, 6, 7, 8, 9]], SamplingOptions(max_new_tokens=6, seed=1)
    found = TransformersEngine(model, 0).sample(prompts, options)
    assert found == [reference.sample(model, prompt, options, i) for i, prompt in enumerate(prompts)]
    with pytest.raises(
        ValueError, match="vLLM would serve Qwen2_5_VLForConditionalGeneration with the parts that read pictures"
    ):
        check_servable(model)
    model.save_pretrained(tmp_path)
    # No auto class of causal language models has it.
    assert isinstance(load_model(tmp_path, ON_A_CPU), Qwen2_5_VLForConditionalGeneration)
