"""Tiny models and a byte tokenizer, built in memory: no hub, no files."""

from pathlib import Path

import torch
import trl
from datasets import Dataset
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of a chat model."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    wrapped.chat_template = chat_template
    return wrapped


VOCAB_SIZE = len(byte_tokenizer())
_SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


def tiny_model(architecture: str = "qwen2", vocab_size: int = VOCAB_SIZE, seed: int = 0, **config) -> PreTrainedModel:
    """A two-layer model of an architecture, with weights large enough for its distributions to be peaked."""
    torch.manual_seed(seed)
    common = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None, **config}
    match architecture:
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**{**_SIZE, "num_hidden_layers": 2, **common}))
        case "mistral":
            model = MistralForCausalLM(MistralConfig(**_SIZE, num_hidden_layers=2, **common))
        case "gemma2":
            size = {**_SIZE, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}
            model = Gemma2ForCausalLM(Gemma2Config(**size, num_hidden_layers=2, **common))
        case "gemma3":
            size = {**_SIZE, "head_dim": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 2}
            types = ["sliding_attention", "full_attention"]
            model = Gemma3ForCausalLM(Gemma3TextConfig(**size, layer_types=types, **common))
        case "llama4":
            size = {**_SIZE, "intermediate_size_mlp": 48, "head_dim": 8, "num_hidden_layers": 2}
            layers = {"moe_layers": [], "no_rope_layers": [1, 0], "num_local_experts": 2}
            model = Llama4ForCausalLM(Llama4TextConfig(**size, **layers, **common))
        case "mamba":
            model = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **common))
        case "gpt2":
            common.setdefault("n_positions", 256)
            model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, **common))
        case "gpt_neo":
            common.setdefault("window_size", 256)
            types = [[["global", "local"], 1]]
            model = GPTNeoForCausalLM(
                GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, attention_types=types, **common)
            )
        case "bloom":
            model = BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=4, **common))
        case _:
            raise ValueError(architecture)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(8 if "embed" in name or "wte" in name else 3)
    model.generation_config.eos_token_id = None
    return model.eval()


def conversations(num_rows: int = 24) -> Dataset:
    """Single-turn conversational prompt-completion rows."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{i} + {i % 7}?"}],
                "completion": [{"role": "assistant", "content": f"It is {i + i % 7}, " + "I think." * (i % 3)}],
            }
            for i in range(num_rows)
        ]
    )


def plain_pairs(num_rows: int = 24) -> Dataset:
    """Plain-text prompt-completion rows."""
    return Dataset.from_list(
        [{"prompt": f"{i} + {i % 7} =", "completion": f" {i + i % 7}" + "!" * (i % 4)} for i in range(num_rows)]
    )


def tokenizer_of(
    chat_template: str | None,
    eos: str = "<|im_end|>",
    special: tuple[str, ...] = ("<|im_start|>",),
    added: tuple[str, ...] = ("<think>", "</think>", "<tool_call>", "</tool_call>"),
    bos: str | None = None,
    newlines: int = 1,
) -> PreTrainedTokenizerFast:
    """
    A byte tokenizer with a model's special tokens and its other added ones; by default Qwen's.

    With `newlines=2`, two of them are one token, as in the published tokenizers: what ends with one is then no prefix.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    merges = []
    if newlines == 2:
        vocabulary["ĊĊ"] = len(vocabulary)
        merges = [("Ċ", "Ċ")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    split = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        bos_token=bos,
        pad_token="<|pad|>",
        additional_special_tokens=list(special),
    )
    wrapped.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    wrapped.chat_template = chat_template
    return wrapped


def published_template(name: str) -> str:
    """A chat template that TRL ships, by its file's name."""
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
