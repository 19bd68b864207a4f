"""Messages reach a chat template in a form that it renders as what they say."""

import pytest

from trl_exbias.chat.template_form import form_of, render

from ..tiny import CHAT_TEMPLATE, byte_tokenizer, published_template, tokenizer_of


ASKED = {"role": "user", "content": "QUESTION"}


def rendered(name: str, *messages: dict, **options) -> str:
    return render(tokenizer_of(published_template(name), bos="<|pad|>"), [*messages], **options)


def call(arguments, **more) -> dict:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", **more, "tool_calls": [{"id": "abcdefghi", "type": "function", "function": function}]}


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "llava_next"])
def test_a_template_that_takes_parts_alone_gets_parts(name):
    """With strings, these say nothing at all, or fail."""
    text = rendered(name, ASKED, {"role": "assistant", "content": "ANSWER"})
    assert "QUESTION" in text
    assert "ANSWER" in text


@pytest.mark.parametrize(
    "name", ["llama3", "phi3", "qwen3", "gemma", "cohere2", "gptoss", "nemotron_3_nano", "deepseekv3"]
)
def test_a_template_that_takes_strings_alone_gets_strings(name):
    parts = [{"type": "text", "text": "AN"}, {"type": "text", "text": "SWER"}]
    text = rendered(name, {**ASKED, "content": parts}, {"role": "assistant", "content": parts})
    assert text == rendered(name, {**ASKED, "content": "ANSWER"}, {"role": "assistant", "content": "ANSWER"})


def test_what_a_template_takes_is_left_as_it_is():
    """Qwen 2.5 VL takes both."""
    form = form_of(tokenizer_of(published_template("qwen2_5_vl")))
    assert form.text == form.parts == {"system", "user", "assistant", "tool"}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("qwen3", '{"name": "weather", "arguments": {"city": "Oslo"}}'),
        ("qwen2_5", '{"name": "weather", "arguments": {"city": "Oslo"}}'),
        ("llama3_1", '"parameters": {"city": "Oslo"}'),
        ("gptoss", '<|message|>{"city": "Oslo"}<|call|>'),
        ("qwen3_5_think", "<parameter=city>\nOslo\n</parameter>"),
        ("gemma4", 'call:weather{city:<|"|>Oslo<|"|>}'),
        ("deepseekv3", '```json\n{"city": "Oslo"}\n```'),
        ("lfm2_v2", "[weather(city='Oslo')]"),
    ],
)
@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_calls_are_written_alike_however_they_are_given(name, written, arguments, content):
    text = rendered(name, ASKED, call(arguments, **content))
    assert written in text
    assert "None" not in text.rpartition("QUESTION")[2]


def test_json_that_a_template_takes_as_it_is_keeps_its_spaces():
    assert '{"city":"Oslo"}' in rendered("qwen3", ASKED, call('{"city":"Oslo"}', content=""))


@pytest.mark.parametrize(
    ("name", "key"),
    [("qwen3", "thinking"), ("gptoss", "reasoning_content"), ("glm4moe", "reasoning"), ("lfm2_2_5", "reasoning")],
)
def test_reasoning_is_rendered_under_whichever_key_it_comes(name, key):
    assert "REASON" in rendered(name, ASKED, {"role": "assistant", "content": "ANSWER", key: "REASON"})


def test_a_template_is_tried_once(monkeypatch):
    tokenizer = byte_tokenizer(CHAT_TEMPLATE + "{# of this test alone #}")
    form = form_of(tokenizer)
    monkeypatch.setattr("trl_exbias.chat.template_form._try", None)
    assert form_of(tokenizer) is form
