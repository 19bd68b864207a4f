from contextlib import nullcontext

import pytest
from datasets import Dataset, Features, Json, List
from tokenizers import processors

from trl_exbias.chat.data_checks import (
    check_rows,
    check_tokenizer,
    check_train_dataset,
    dataset_form,
    readable,
    rows_of,
)
from trl_exbias.chat.token_checks import doubled_tokens

from ..tiny import CHAT_TEMPLATE, byte_tokenizer, conversations, plain_pairs, published_template


def chat(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def sharegpt(*turns: tuple[str, str]) -> list[dict]:
    return [{"from": role, "value": text} for role, text in turns]


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        (["prompt", "completion"], "prompt-completion"),
        (["messages"], "messages"),
        (["conversations"], "messages"),
        (["text", "id"], "text"),
        (["input_ids", "labels", "text"], "tokenized"),
    ],
)
def test_the_forms_of_trl(columns, form):
    assert dataset_form(columns, "text") == form


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "answer": "b"}], r"no `completion` column \(columns: prompt, answer\)"),
        ([{"question": "a", "answer": "b"}], r"none of the columns that hold a response \(columns: question, answer\)"),
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": " "}],
            r"1 of 2 .* empty response .*rows 1\)",
        ),
        ([{"messages": chat("a", "")}], "1 of 1 training rows have an empty response in `messages`"),
        ([{"prompt": chat("a"), "completion": []}], "empty response"),
        ([{"messages": chat("a", "b", "c")}], "do not end with an assistant turn"),
        ([{"text": "a", "image": "b"}], "Vision datasets are not supported"),
    ],
)
def test_bad_rows_get_one_clear_message(rows, message):
    with pytest.raises(ValueError, match=message):
        check_train_dataset(Dataset.from_list(rows), "text")


GOOD = {
    "prompt": {"prompt": "a", "completion": "b"},
    "text": {"text": "abc"},
    "turns": {"prompt": chat("a"), "completion": [{"role": "assistant", "content": "b"}]},
    "messages": {"messages": chat("a", "b")},
    "conversations": {"conversations": sharegpt(("human", "a"), ("gpt", "b"))},
    "input_ids": {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
}
CALL = [{"type": "function", "function": {"name": "w", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("form", "bad", "message"),
    [
        ("prompt", {"prompt": None}, "have a null in `prompt`"),
        ("prompt", {"completion": None}, "have an empty response in `completion`"),
        ("text", {"text": None}, "have no text in `text`"),
        ("text", {"text": " \n"}, "have no text in `text`"),
        ("turns", {"prompt": None}, "have no message in `prompt`"),
        ("turns", {"prompt": []}, "have no message in `prompt`"),
        ("turns", {"prompt": [{"role": "user", "content": None}]}, "content is null in `prompt`"),
        ("turns", {"completion": None}, "have an empty response in `completion`"),
        ("turns", {"completion": [{"role": "user", "content": "b"}]}, "do not end with an assistant turn in `comp"),
        ("messages", {"messages": None}, "have an empty response in `messages`"),
        ("messages", {"messages": []}, "have an empty response in `messages`"),
        ("messages", {"messages": chat("a", None)}, "have an empty response in `messages`"),
        ("messages", {"messages": chat(None, "b")}, "content is null in `messages`"),
        ("messages", {"messages": [{"role": None, "content": "a"}, *chat("", "b")[1:]]}, "without a role in `mess"),
        ("messages", {"messages": [*chat("a"), {"role": None, "content": "b"}]}, "without a role in `messages`"),
        ("messages", {"messages": chat("", "b")[1:]}, "have nothing before the answer in `messages`"),
        (
            "conversations",
            {"conversations": sharegpt(("human", "a"), ("gpt", ""))},
            "empty response in `conversations`",
        ),
        ("conversations", {"conversations": sharegpt(("human", "a"))}, "do not end with an assistant turn"),
        ("input_ids", {"input_ids": None}, "have a null in `input_ids`"),
        ("input_ids", {"input_ids": [], "labels": []}, "have no tokens in `input_ids`"),
        ("input_ids", {"input_ids": [1, None, 2]}, "have a null inside `input_ids`"),
        ("input_ids", {"labels": None}, "have a null in `labels`"),
        ("input_ids", {"labels": [1, 2]}, "another number of labels in `labels` than tokens"),
        ("input_ids", {"labels": [-100] * 3}, "have no label in `labels` after the first token"),
        ("input_ids", {"labels": [1, -100, -100]}, "have no label in `labels` after the first token"),
        ("input_ids", {"input_ids": [1, 2, 9]}, "have tokens in `input_ids` that the model, with 9 embeddings"),
        ("input_ids", {"input_ids": [1, 2, -1]}, "have tokens in `input_ids` that the model, with 9 embeddings"),
        ("input_ids", {"labels": [1, 2, 9]}, "have tokens in `labels` that the model, with 9 embeddings"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named_with_its_column(form, bad, message):
    rows = [GOOD[form], {**GOOD[form], **bad}, GOOD[form]]
    with pytest.raises(ValueError, match=rf"^1 of 3 training rows .*{message}.*\(rows 1\)\. \S"):
        check_train_dataset(Dataset.from_list(rows), "text", num_embeddings=9)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "", "completion": "b"},
        {"messages": [*chat("a"), {"role": "assistant", "content": None, "tool_calls": CALL}]},
        {"messages": [*chat("a"), {"role": "assistant", "content": "", "reasoning_content": "r"}]},
        {"messages": [{"role": "system", "content": ""}, *chat("a", "b")]},
        {"messages": chat("a", "b"), "tools": None, "chat_template_kwargs": None},
        {"messages": chat("a", "b"), "tools": ""},
        {"messages": chat("a", "b"), "tools": "null"},
        {"messages": [{"role": r, "content": [{"type": "text", "text": "a"}]} for r in ("user", "assistant")]},
        {"conversations": sharegpt(("system", "s"), ("human", "a"), ("function_call", '{"name": "w"}'))},
        {"input_ids": [1, 2], "labels": [-100, 2], "other": None},
    ],
)
def test_null_is_absent(row):
    assert check_rows(Dataset.from_list([row]), "training dataset", "text") == []


def test_all_problems_of_all_data_sets_are_one_error():
    train = Dataset.from_list([{"prompt": None, "completion": "b"}, {"prompt": "a", "completion": None}])
    evaluation = {"short": plain_pairs(2), "long": Dataset.from_list([{"text": "a"}, {"text": None}])}
    with pytest.raises(ValueError, match="cannot be used") as error:
        check_train_dataset(train, "text", eval_dataset=evaluation)
    assert [message.split(" (")[0] for message in error.value.problems] == [
        "1 of 2 training rows have a null in `prompt`",
        "1 of 2 training rows have an empty response in `completion`",
        "1 of 2 rows of the evaluation set `long` have no text in `text`",
    ]
    assert all(f"\n- {message}" in str(error.value) for message in error.value.problems)


@pytest.mark.parametrize("as_json", [List(Json()), Json()])
def test_messages_kept_as_json_are_checked_too(as_json):
    rows = [chat("a", "b"), chat("a", ""), None, chat("a", "b", "c"), [{"content": "x"}, *chat("", "b")]]
    dataset = Dataset.from_list([{"messages": row} for row in rows], features=Features({"messages": as_json}))
    said = [message.split(". ")[0] for message in check_rows(dataset, "training dataset", "text")]
    assert sorted(said) == [
        "1 of 5 training rows do not end with an assistant turn in `messages` (rows 3)",
        "1 of 5 training rows have a message without a role in `messages` (rows 4)",
        "2 of 5 training rows have an empty response in `messages` (rows 1, 2)",
    ]


def test_rows_are_numbered_as_they_are_read():
    rows = Dataset.from_list([{"text": None if i == 12_345 else "a"} for i in range(20_000)])
    (message,) = check_rows(rows.select(range(19_999, -1, -1)), "training dataset", "text")
    assert f"(rows {19_999 - 12_345})" in message


@pytest.mark.parametrize(("column", "text"), [("tools", "[{"), ("chat_template_kwargs", "[1]")])
def test_texts_that_are_no_json_are_named(column, text):
    rows = [{**GOOD["messages"], column: value} for value in (None, "", text)]
    (message,) = check_rows(Dataset.from_list(rows), "training dataset", "text")
    assert f"`{column}`" in message and "(rows 2)" in message and "json.dumps" in message


@pytest.mark.parametrize(
    "features", [{"text": [1, 2]}, {"prompt": ["a"], "completion": [chat("", "b")[1:]]}, {"input_ids": ["a b"]}]
)
def test_a_column_of_another_kind_is_named_with_its_type(features):
    (message,) = check_rows(Dataset.from_dict(features), "training dataset", "text")
    assert f"`{[*features][-1]}`" in message and ("int64" in message or "list<" in message or "string" in message)


def test_documents_may_be_empty_but_not_null():
    rows = Dataset.from_list([{"text": "a"}, {"text": ""}, {"text": None}])
    (message,) = check_rows(rows, "training dataset", "text", reads_documents=True)
    assert message.startswith("1 of 3 training rows have a null in `text` (rows 2)")


def test_the_method_is_named_before_the_rows():
    with pytest.raises(
        ValueError, match="RACTrainer needs data in the form messages; this dataset is of the form text"
    ):
        check_train_dataset(Dataset.from_list([{"text": None}]), "text", forms=("messages",), method="RACTrainer")


def test_an_iterable_dataset_is_refused_with_a_way_out():
    with pytest.raises(TypeError, match=r"`IterableDataset` cannot be rolled out.*Dataset.from_list"):
        check_train_dataset(plain_pairs().to_iterable_dataset(), "text")


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="must be a `datasets.Dataset`, got `list`"):
        check_train_dataset([{"text": "a"}], "text")
    with pytest.raises(ValueError, match="no rows"):
        check_train_dataset(plain_pairs().select([]), "text")
    with pytest.raises(ValueError, match="evaluation set `b` has no rows"):
        check_train_dataset(plain_pairs(), "text", eval_dataset={"b": plain_pairs().select([])})


def test_many_bad_rows_are_counted_and_a_few_named():
    rows = [{"prompt": "a", "completion": ""}] * 9
    with pytest.raises(ValueError, match=r"9 of 9 .*\(rows 0, 1, 2, 3, 4, …\)"):
        check_train_dataset(Dataset.from_list(rows), "text")


def test_the_datasets_of_these_tests_are_fine():
    assert check_train_dataset(conversations(), "text") == "prompt-completion"
    assert check_train_dataset(plain_pairs(), "text") == "prompt-completion"


def test_a_data_set_is_called_by_its_name():
    assert rows_of("training dataset", 3) == "3 training rows"
    assert rows_of("evaluation dataset", 3) == "3 evaluation rows"
    assert rows_of("evaluation set `train`", 3) == "3 rows of the evaluation set `train`"


class TestReadable:
    def test_a_format_is_left_out(self):
        plain = Dataset.from_list([GOOD["input_ids"]])
        for kind in ("torch", "numpy", "arrow", "pandas"):
            assert readable(plain.with_format(kind), "data")[0] == plain[0]

    def test_a_transform_is_refused(self):
        with pytest.raises(ValueError, match=r"training dataset has a transform .*`Dataset\.map`"):
            readable(plain_pairs().with_transform(lambda batch: batch), "training dataset")

    @pytest.mark.parametrize(
        ("row", "left"),
        [
            ({**GOOD["input_ids"], "branches": [1], "context_length": 2, "exbias_row": 1}, GOOD["input_ids"]),
            ({**GOOD["text"], "labels": 1, "soft_labels": 2.0, "prompt_ids": [1]}, {"text": "abc", "prompt_ids": [1]}),
        ],
    )
    def test_columns_of_our_names_are_left_out_with_a_word(self, caplog, row, left):
        assert readable(Dataset.from_list([row]), "training dataset")[0] == left
        taken = set(row) - set(left)
        assert "They are left out" in caplog.text and all(name in caplog.text for name in taken)


class TestTokenizer:
    class args:
        eos_token = pad_token = chat_template_path = None
        assistant_only_loss = False

    class assistant_only(args):
        assistant_only_loss = True

    @pytest.mark.parametrize(
        ("template", "is_marked"),
        [
            (CHAT_TEMPLATE, False),
            (CHAT_TEMPLATE + "{%- generation -%}{%- endgeneration -%}", True),
            (published_template("qwen2_5"), True),  # TRL has a copy with marks
        ],
    )
    def test_what_the_assistant_says_has_to_be_marked_where_that_alone_is_trained_on(
        self, template, is_marked, tmp_path
    ):
        class from_file(self.assistant_only):
            chat_template_path = str(tmp_path / "own.jinja")

        (tmp_path / "own.jinja").write_text(template)
        tokenizers = {
            "its own": (byte_tokenizer(template), self.assistant_only),
            "a file": (byte_tokenizer(), from_file),
        }
        for tokenizer, args in tokenizers.values():
            with nullcontext() if is_marked else pytest.raises(ValueError, match="has no `{% generation %}`, and TRL"):
                check_tokenizer(tokenizer, args, conversations(), "prompt-completion")
        check_tokenizer(byte_tokenizer(template), self.args, conversations(), "prompt-completion")

    def test_only_a_conversation_has_an_assistant(self):
        for rows, form in ((plain_pairs(), "prompt-completion"), (Dataset.from_list([{"text": "a"}]), "text")):
            with pytest.raises(ValueError, match="`assistant_only_loss=True` trains on .* is not conversational"):
                check_tokenizer(byte_tokenizer(), self.assistant_only, rows, form)

    def test_a_role_that_no_one_knows_is_refused_unless_the_template_mentions_it(self):
        rows = Dataset.from_list(
            [GOOD["messages"], {"messages": [{"role": "usr", "content": "a"}, *chat("", "b")[1:]]}]
        )
        with pytest.raises(
            ValueError, match=r"1 of 2 training rows have a turn of the role `usr` in `messages`.*rows 1\)"
        ):
            check_tokenizer(byte_tokenizer(), self.args, rows, "messages")
        check_tokenizer(byte_tokenizer(CHAT_TEMPLATE + "{# 'usr' #}"), self.args, rows, "messages")

    def test_an_evaluation_set_of_conversations_needs_a_chat_template_too(self):
        with pytest.raises(
            ValueError, match="evaluation dataset is conversational, but the tokenizer has no chat template"
        ):
            check_tokenizer(byte_tokenizer(None), self.args, plain_pairs(), "prompt-completion", conversations())

    @pytest.mark.parametrize("token", ["pad_token", "eos_token"])
    def test_a_special_token_needs_an_embedding(self, token):
        tokenizer = byte_tokenizer()
        size = len(tokenizer)
        tokenizer.add_special_tokens({token: "[NEW]"})
        with pytest.raises(ValueError, match=rf"`\[NEW\]` has the id {size}, .*{size} tokens alone.*`{token}`"):
            check_tokenizer(tokenizer, self.args, plain_pairs(), "prompt-completion", num_embeddings=size)
        check_tokenizer(tokenizer, self.args, plain_pairs(), "prompt-completion", num_embeddings=size + 1)


def test_two_tokens_of_the_beginning_or_the_end_are_reported_once():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <|im_end|>",
        special_tokens=[("<bos>", tokenizer.bos_token_id), ("<|im_end|>", tokenizer.eos_token_id)],
    )
    rows = [tokenizer(text)["input_ids"] for text in ("a", "<bos>a", "<bos>a<|im_end|>")]
    begin, end = doubled_tokens(rows, tokenizer)
    assert begin.startswith("2 of the first 3 rows begin with two `<bos>`.") and "add_bos_token = False" in begin
    assert end.startswith("1 of the first 3 rows end with two `<|im_end|>`.") and "add_eos_token = False" in end
    assert doubled_tokens(rows[:1], tokenizer) == []
