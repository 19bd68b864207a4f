"""Random models of a size at which kernels and memory matter, made on the device."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from examples.benchmarks.gpu.random_policy import random_policy
from trl_exbias.demo.embedded_model import embedded_model_folder, is_made
from trl_exbias.demo.word_problems import word_problems

from .device import DEVICE, on_gpu_or_cpu


HAS_SMOLLM2 = is_made(embedded_model_folder())


def mid_config(family: str = "qwen2", **changes) -> PretrainedConfig:
    """512 wide, 6 layers, 32k tokens, grouped keys; on a CPU a quarter of each."""
    size = {
        "vocab_size": on_gpu_or_cpu(32768, 4096),
        "hidden_size": on_gpu_or_cpu(512, 128),
        "intermediate_size": on_gpu_or_cpu(1536, 384),
        "num_hidden_layers": on_gpu_or_cpu(6, 2),
        "num_attention_heads": on_gpu_or_cpu(8, 4),
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        **changes,
    }
    if family == "gemma2":
        return Gemma2Config(**size, head_dim=size["hidden_size"] // size["num_attention_heads"])
    return Qwen2Config(**size)


def mid_policy(family: str = "qwen2", dtype: torch.dtype = torch.float32, **changes) -> PreTrainedModel:
    """A policy about as sure of itself as a trained one."""
    policy = random_policy(mid_config(family, **changes), dtype).to(DEVICE)
    policy.generation_config.eos_token_id = None
    return policy


def more_precise(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights, computing in float32 where they are in half precision, and in float64 where in float32."""
    return copy.deepcopy(model).to(torch.float64 if model.dtype == torch.float32 else torch.float32)


def smollm2(dtype: torch.dtype) -> PreTrainedModel:
    """SmolLM2-135M-Instruct, which is there where [`HAS_SMOLLM2`] is true; it is never fetched."""
    return AutoModelForCausalLM.from_pretrained(embedded_model_folder(), dtype=dtype).to(DEVICE).eval()


def smollm2_rows(number: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and gold responses that SmolLM2 can make sense of, in its tokens."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_folder())
    rows = word_problems(number, seed=3)
    return (
        [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"] for row in rows],
        [tokenizer(row["completion"][0]["content"] + "<|im_end|>")["input_ids"] for row in rows],
    )
