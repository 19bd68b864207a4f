"""Conversations as they come are read in one way."""

import json

import pytest
from datasets import Dataset, Features, Json, List

from trl_exbias.chat.conversations import conversation, message_of, normalised, split_turns

from ..tiny import plain_pairs


TOOL = {
    "type": "function",
    "function": {"name": "w", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"type": "function", "function": {"name": "w", "arguments": {"city": "Oslo"}}}


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str | None, **more) -> dict:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"from": "human", "value": "a"}, user("a")),
        ({"from": "user", "value": "a", "weight": None}, user("a")),
        ({"role": "human", "content": "a"}, user("a")),
        ({"from": "gpt", "value": "a"}, assistant("a")),
        ({"from": "system", "value": "a"}, {"role": "system", "content": "a"}),
        ({"from": "observation", "value": "4"}, {"role": "tool", "content": "4"}),
        ({"from": "tool", "value": "4"}, {"role": "tool", "content": "4"}),
        (
            {"from": "function_call", "value": '{"name": "w", "arguments": {"city": "Oslo"}}'},
            assistant("", tool_calls=[CALL]),
        ),
        ({"role": "assistant", "tool_calls": json.dumps([CALL])}, assistant(None, tool_calls=[CALL])),
        (assistant(None, tool_calls=[{**CALL, "id": None}], name=None), assistant(None, tool_calls=[CALL])),
        (assistant("a", tool_calls=None), assistant("a")),
        (assistant("a", tool_calls=[]), assistant("a")),
        (
            user([{"type": "text", "text": "a", "image": None}, "b"]),
            user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        ),
        ({"role": "critic", "content": "a"}, {"role": "critic", "content": "a"}),
    ],
)
def test_a_message_has_a_role_and_a_content(raw, expected):
    assert message_of(raw) == expected
    assert message_of(message_of(raw)) == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"from": "narrator", "value": "a"}, r"`from: narrator` is none of the roles that are known \(system, .*human"),
        ({"content": "a"}, r"has no `role` \(its keys: content\)"),
        ({"from": "function_call", "value": "call w"}, "`tool_calls` is not JSON"),
        (assistant(None, tool_calls=[{"type": "function"}]), "must have a `name`"),
        (user([{"type": "image", "url": "x"}]), "a part of the type 'image': only text can be rolled out"),
        ("a", "must be a dictionary"),
    ],
)
def test_what_is_no_message_is_refused_by_name(raw, message):
    with pytest.raises(ValueError, match=message):
        message_of(raw)


class TestNormalised:
    def test_sharegpt_becomes_messages(self):
        rows = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "id": 7}]
        dataset = normalised(Dataset.from_list(rows))
        assert dataset.to_list() == [{"id": 7, "messages": [user("a"), assistant("b")]}]

    def test_keys_that_arrow_filled_in_are_gone(self):
        """In messages, in the arguments of calls and in tools; an argument that is null in JSON is one."""
        other = {
            "type": "function",
            "function": {
                "name": "v",
                "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "d"}}},
            },
        }
        mapping = {**CALL, "function": {"name": "v", "arguments": {"x": 1}}}
        rows = [
            {"messages": [user("a"), assistant(None, tool_calls=[CALL])], "tools": [TOOL]},
            {"messages": [user("b"), assistant(None, tool_calls=[mapping])], "tools": [other]},
            {"messages": [user("c"), assistant("d")], "tools": None},
        ]
        dataset = Dataset.from_list(rows)
        assert dataset[0]["messages"][0].get("tool_calls", "filled") is None
        assert normalised(dataset).to_list() == rows
        null = {**CALL, "function": {"name": "w", "arguments": {"city": None}}}
        rows = [{"messages": [user("a"), assistant("b", tool_calls=[null])]}]
        as_json = Dataset.from_list(rows, features=Features({"messages": List(Json())}))
        assert normalised(as_json).to_list() == rows

    @pytest.mark.parametrize("tools", [None, "", "null", "[]", []])
    def test_no_tools_are_none(self, tools):
        rows = [{"messages": [user("a"), assistant("b")], "tools": tools}]
        assert normalised(Dataset.from_list(rows))[0]["tools"] is None

    @pytest.mark.parametrize("tools", [json.dumps([TOOL]), [json.dumps(TOOL)], [TOOL], json.dumps(TOOL)])
    def test_tools_may_be_json(self, tools):
        rows = [{"messages": [user("a"), assistant("b")], "tools": tools}]
        assert normalised(Dataset.from_list(rows))[0]["tools"] == [TOOL]

    def test_a_rows_own_template_arguments_win(self):
        turns = {"prompt": [user("a")], "completion": [assistant("b")]}
        rows = [{**turns, "chat_template_kwargs": own} for own in ({"x": 1, "z": 4}, None, {"y": 3})]
        found = normalised(Dataset.from_list(rows), {"x": 0, "y": 2})["chat_template_kwargs"][:]
        assert found == [{"x": 1, "y": 2, "z": 4}, {"x": 0, "y": 2}, {"x": 0, "y": 3}]
        assert normalised(Dataset.from_list([turns]), {"x": 0})["chat_template_kwargs"][:] == [{"x": 0}]

    def test_what_cannot_be_read_is_named_by_its_row(self):
        rows = [
            {"conversations": [{"from": who, "value": "a"}, {"from": "gpt", "value": "b"}]} for who in ("human", "x")
        ]
        with pytest.raises(ValueError, match="Row 1: `from: x`"):
            normalised(Dataset.from_list(rows))
        with pytest.raises(ValueError, match="Row 0: `tools` is not JSON"):
            normalised(Dataset.from_list([{"messages": [user("a"), assistant("b")], "tools": "{"}]))

    def test_other_data_stay_as_they_are(self):
        for dataset in (plain_pairs(2), Dataset.from_list([{"text": "a"}]), Dataset.from_list([{"input_ids": [1]}])):
            assert normalised(dataset, {"x": 1}) is dataset


class TestSplitTurns:
    messages = [
        user("a"),
        assistant("b"),
        user("c"),
        assistant(None, tool_calls=[CALL]),
        {"role": "tool", "content": "4"},
    ]
    messages += [assistant("d")]

    def test_every_turn_keeps_what_the_row_has(self):
        row = {"messages": self.messages, "tools": [TOOL], "chat_template_kwargs": {"x": 1}, "id": 7}
        rows = split_turns(normalised(Dataset.from_list([row]))).to_list()
        assert [len(row["prompt"]) for row in rows] == [1, 3, 5]
        assert [row["completion"] for row in rows] == [[self.messages[k]] for k in (1, 3, 5)]
        for found in rows:
            assert found["prompt"] == self.messages[: len(found["prompt"])]
            assert (found["tools"], found["chat_template_kwargs"], found["id"]) == ([TOOL], {"x": 1}, 7)

    def test_sharegpt_and_completions_are_split_too(self):
        turns = [
            {"from": who, "value": what} for who, what in (("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))
        ]
        expected = [([user("a")], [assistant("b")]), ([user("a"), assistant("b"), user("c")], [assistant("d")])]
        for row in ({"conversations": turns}, {"prompt": turns[:3], "completion": turns[3:]}):
            rows = split_turns(normalised(Dataset.from_list([row]))).to_list()
            assert [(row["prompt"], row["completion"]) for row in rows] == expected

    def test_a_turn_that_says_nothing_or_opens_the_conversation_is_none(self):
        messages = [assistant("Hi."), user("a"), assistant(""), user("b"), assistant("c")]
        rows = split_turns(normalised(Dataset.from_list([{"messages": messages}]))).to_list()
        assert [row["completion"] for row in rows] == [[assistant("c")]]


def test_a_conversation_is_prompt_and_completion_or_messages():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for row in ({"messages": turns}, {"conversations": turns}, {"prompt": turns[:1], "completion": turns[1:]}):
        assert conversation(row) == [user("a"), assistant("b")]
