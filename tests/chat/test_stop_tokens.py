"""Only the end of the model's turn stops a rollout, for every template that TRL ships."""

from pathlib import Path

import pytest
import trl

from trl_exbias.chat.stop_tokens import stop_token_ids, turn_end, unfinished_test

from ..tiny import byte_tokenizer, published_template, tokenizer_of


TEMPLATES = sorted(path.stem for path in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))

QWEN = {"added": ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")}
LLAMA = {"eos": "<|end_of_text|>", "bos": "<|begin_of_text|>"} | {
    "special": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
}
GEMMA = {"eos": "<eos>", "special": ("<start_of_turn>", "<end_of_turn>"), "added": ()}
GEMMA4 = {
    "eos": "<eos>",
    "special": ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>')
    + ("<|tool_response>", "<tool_response|>", "<|tool>", "<tool|>", "<|think|>"),
    "added": (),
}
COHERE = {
    "eos": "<EOS_TOKEN>",
    "special": ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
    + ("<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    "added": (),
}
DEEPSEEK = {
    "eos": "<｜end▁of▁sentence｜>",
    "special": ("<｜User｜>", "<｜Assistant｜>"),
    "added": ("<think>", "</think>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>")
    + ("<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
}
GLM = {
    "eos": "<|endoftext|>",
    "special": ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    "added": (
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
    ),
}
GPT_OSS = {
    "eos": "<|return|>",
    "special": ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|call|>"),
    "added": (),
}
LFM = {"special": ("<|im_start|>", "<|tool_call_start|>", "<|tool_call_end|>"), "added": ("<think>", "</think>")}
MUSE = {"eos": "<|end_of_text|>", "special": ("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"), "added": ()}
PHI = {"eos": "<|endoftext|>", "special": ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"), "added": ()}
UTTERANCES = {"eos": "<eos>", "special": ("<end_of_utterance>",), "added": ()}
# A model's published tokens, and what ends its turns.
FAMILIES = {
    "cohere": (COHERE, {"<|END_OF_TURN_TOKEN|>"}),
    "deepseek": (DEEPSEEK, {"<｜end▁of▁sentence｜>"}),
    "diffusion_gemma": (GEMMA4, {"<turn|>", "<|tool_response>"}),
    "gemma4_v2": (GEMMA4, {"<turn|>"}),
    "gemma4": (GEMMA4, {"<turn|>", "<|tool_response>"}),
    "gemma": (GEMMA, {"<end_of_turn>"}),
    "glm": (GLM, {"<|user|>", "<|observation|>"}),
    "gptoss": (GPT_OSS, {"<|return|>", "<|call|>"}),
    "idefics": (UTTERANCES, {"<end_of_utterance>"}),
    "smolvlm": (UTTERANCES, {"<end_of_utterance>"}),
    "lfm": (LFM, {"<|im_end|>"}),
    "llama": (LLAMA, {"<|eot_id|>"}),
    "llava": ({"eos": "</s>", "special": (), "added": ()}, {"</s>"}),
    "muse": (MUSE, {"<|eot|>"}),
    "nemotron": (QWEN, {"<|im_end|>"}),
    "phi": (PHI, {"<|end|>"}),
    "qwen": (QWEN, {"<|im_end|>"}),
}


def of(name: str):
    """A tokenizer with a template, its model's tokens, and the ends of its turns."""
    tokens, ends = next(found for family, found in FAMILIES.items() if name.startswith(family))
    return tokenizer_of(published_template(name), **tokens), ends


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_ends_a_turn_and_nothing_else_stops(name):
    tokenizer, ends = of(name)
    assert set(tokenizer.convert_ids_to_tokens(list(turn_end(tokenizer).ends))) == ends
    assert set(tokenizer.convert_ids_to_tokens(list(stop_token_ids(tokenizer, None, None)))) == {
        *ends,
        tokenizer.eos_token,
    }


def test_the_end_of_turn_of_the_chat_template_stops_even_if_it_is_not_the_eos(tokenizer):
    other = byte_tokenizer()
    other.eos_token = "<|pad|>"
    expected = {tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|pad|>")}
    assert set(stop_token_ids(other, None, None)) == expected


def test_the_generation_config_may_name_several(tokenizer):
    class Config:
        eos_token_id = [3, 4]

    assert set(stop_token_ids(tokenizer, Config(), None)) == {3, 4, tokenizer.eos_token_id}


def test_none_at_all_is_an_error():
    tokenizer = byte_tokenizer(chat_template=None)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        stop_token_ids(tokenizer, None, None)


@pytest.mark.parametrize(
    ("name", "response", "is_unfinished"),
    [
        ("qwen3", "<think>\nr\n</think>\n\nA<|im_end|>", False),
        ("qwen3", "<tool_call>\n{}\n</tool_call><|im_end|>", False),
        ("qwen3", "<think><|im_end|>", True),
        ("qwen3", "<think>\nr\n</think>\n\n<|im_end|>", True),
        ("qwen3", "A <tool_call>\n<|im_end|>", True),
        ("qwen3_5_think", "r\n</think>\n\n<|im_end|>", True),
        ("qwen3_5_think", "r\n</think>\n\nA<|im_end|>", False),
        ("cohere2", "A<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", False),
        ("cohere2", "A<|END_OF_TURN_TOKEN|>", False),
        ("gptoss", "<|channel|>analysis<|message|>r<|end|>", True),
        ("gptoss", "<|channel|>final<|message|><|return|>", True),
        ("gptoss", "<|channel|>final<|message|>A<|return|>", False),
        ("glm4moe", "\n<think></think>\nA<|user|>", False),
        ("glm4moe", "\n<think></think>\n<|user|>", True),
    ],
)
def test_a_response_that_ends_at_a_marker_in_the_middle_is_unfinished(name, response, is_unfinished):
    tokenizer, _ = of(name)
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    assert unfinished_test(tokenizer, turn_end(tokenizer))(ids) == is_unfinished


def test_an_answer_that_is_a_token_of_its_own_is_none():
    """Labels that somebody added to the vocabulary are answers, not the template's markers."""
    tokenizer = tokenizer_of(published_template("qwen2_5"), special=("<|im_start|>", "<|yes|>"))
    ids = tokenizer("<|yes|><|im_end|>")["input_ids"]
    assert not unfinished_test(tokenizer, turn_end(tokenizer))(ids)
