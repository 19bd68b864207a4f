"""An answer as text: never blank, never "None", never Python's notation where the template renders it."""

import pytest

from trl_exbias.chat.answers import answer_text

from ..tiny import published_template, tokenizer_of
from .test_stop_tokens import TEMPLATES, of


ASKED = [{"role": "user", "content": "QUESTION"}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
WITHOUT_CALLS = (
    "cohere",
    "gemma_",
    "gemma3",
    "idefics3",
    "lfm2_training",
    "llama3_t",
    "llava_next",
    "phi3",
    "qwen2_5_vl",
    "smolvlm",
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_and_reasoning_are_as_the_template_renders_them(name):
    tokenizer, ends = of(name)
    text = answer_text(tokenizer, ASKED, {"role": "assistant", "content": "ANSWER", "thinking": "REASON"})
    assert text.endswith("ANSWER")
    assert text == "ANSWER" or "REASON" in text
    called = answer_text(tokenizer, ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]})
    if name in ("gemma", "lfm2", "llama3") or name.startswith(WITHOUT_CALLS):
        assert called == ""
    elif name.startswith("deepseek_r1") and not keeps_null(tokenizer):
        assert called == ""  # its template renders calls next to a content of null alone
    else:
        assert "weather" in called
        assert "Oslo" in called
    for said in (text, called):
        assert "None" not in said
        assert "QUESTION" not in said
        assert not any(end in said for end in ends)
        assert said.count("<think>") == said.count("</think>")


def keeps_null(tokenizer) -> bool:
    """Whether transformers hands a content of null on to the template: some releases leave it out."""
    said = tokenizer.apply_chat_template(
        [{"role": "assistant", "content": None}],
        chat_template="{% for message in messages %}{{ 'content' in message }}{% endfor %}",
        tokenize=False,
    )
    return said == "True"


def test_text_is_the_text():
    tokenizer = tokenizer_of(published_template("qwen3"))
    for content in ("ANSWER ", [{"type": "text", "text": "ANSWER "}], ["ANSWER", " "]):
        assert answer_text(tokenizer, ASKED, {"role": "assistant", "content": content, "tool_calls": None}) == "ANSWER "


def test_reasoning_that_the_prompt_opens_is_whole():
    tokenizer = tokenizer_of(published_template("qwen3_5_think"))
    answer = {"role": "assistant", "content": "ANSWER", "reasoning_content": "REASON"}
    assert answer_text(tokenizer, ASKED, answer) == "<think>\nREASON\n</think>\n\nANSWER"


def test_turns_within_an_answer_do_not_end_the_turn_that_quotes_it():
    tokenizer, _ = of("gptoss")
    text = answer_text(tokenizer, ASKED, {"role": "assistant", "content": "ANSWER", "thinking": "REASON"})
    assert text == "<|channel|>analysis\nREASON\n\nassistant<|channel|>final\nANSWER"
