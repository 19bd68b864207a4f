"""A model under evaluation is asked what it is asked in training: the same tokens, from the same rows."""

import json

import pytest
from datasets import Dataset
from tokenizers import processors

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.cli.measure import _parser
from trl_exbias.cli.measured_rows import cut, rows_of
from trl_exbias.core.data import Example
from trl_exbias.evaluation import EvaluationOptions
from trl_exbias.evaluation.prompted import readable
from trl_exbias.evaluation.suites import load_suite
from trl_exbias.evaluation.tasks import items, load

from ..loop.runs import config, trainer
from ..tiny import byte_tokenizer, published_template, tiny_model, tokenizer_of


TOKENIZER = tokenizer_of(published_template("qwen3_5_think"), newlines=2)
TOOLS = [
    {
        "type": "function",
        "function": {"name": "w", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
]
CALL = {"type": "function", "function": {"name": "w", "arguments": '{"city": "Oslo"}'}}
ASKED = [{"role": "user", "content": "q"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "A"}]
ROWS = {
    "messages": {"messages": ANSWERED},
    "ShareGPT": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "A"}]},
    "tools as JSON": {"messages": ANSWERED, "tools": json.dumps(TOOLS)},
    "tools": {"prompt": ASKED, "completion": ANSWERED[1:], "tools": TOOLS},
    "template arguments": {"messages": ANSWERED, "chat_template_kwargs": {"enable_thinking": False}},
    "reasoning": {"messages": [*ASKED, {**ANSWERED[1], "reasoning_content": "r"}]},
    "a call": {"messages": [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    "parts": {"messages": [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in ANSWERED]},
    "text": {"prompt": "q\n", "completion": "\nA"},
}


def file_of(tmp_path, row: dict) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return str(path)


def trained(tmp_path, row: dict, **options) -> tuple[list[int], list[int]]:
    """A row's prompt and its answer up to what ends it, as a trainer has them."""
    args = config(BASHConfig, tmp_path, max_length=None, **options)
    model = tiny_model(vocab_size=len(TOKENIZER))
    made = trainer(BASHTrainer, args, Dataset.from_list([row]), model, processing_class=TOKENIZER)
    example = Example.from_row(0, made.train_dataset[0])
    end = example.response_ids.index(TOKENIZER.eos_token_id) + 1
    return example.context_ids, example.response_ids[:end]


def asked(tmp_path, row: dict, **options):
    """The same as a suite has them."""
    given = EvaluationOptions(suites=("likelihood",), data=(file_of(tmp_path, row),), **options)
    suite = load_suite("likelihood")
    (item,) = items(load(suite, given), suite, given, TOKENIZER)
    return item


@pytest.mark.parametrize("name", ROWS)
def test_a_suite_asks_what_training_asks(tmp_path, name):
    item = asked(tmp_path, ROWS[name])
    assert (item.ids, item.response) == trained(tmp_path, ROWS[name])
    assert "None" not in item.references[0]


@pytest.mark.parametrize("name", ["messages", "tools", "template arguments"])
def test_template_arguments_for_all_rows_are_the_same_setting(tmp_path, name):
    given = '{"enable_thinking": false}'
    item = asked(tmp_path, ROWS[name], chat_template_kwargs=given)
    assert (item.ids, item.response) == trained(tmp_path, ROWS[name], chat_template_kwargs=given)
    assert TOKENIZER.decode(item.ids).endswith("<think>\n\n</think>\n\n")


def test_prompts_that_templates_make_get_them_too(tmp_path):
    options = {"prompt_template": "{{ q }}", "completion_template": "{{ a }}", "as_conversation": True}
    item = asked(tmp_path, {"q": "q", "a": "A"}, chat_template_kwargs='{"enable_thinking": false}', **options)
    row = {**ROWS["messages"], "chat_template_kwargs": {"enable_thinking": False}}
    assert (item.ids, item.response) == trained(tmp_path, row)


@pytest.mark.parametrize("name", ROWS)
def test_measure_starts_where_training_rolls_out(tmp_path, name):
    args = _parser().parse_args(["model", "--data", file_of(tmp_path, ROWS[name]), "--horizon", "5"])
    contexts, horizons, _, _ = cut(rows_of(args), TOKENIZER, args)
    prompt, response = trained(tmp_path, ROWS[name])
    assert (contexts, horizons) == ([prompt], [response[:5]])


def test_measure_takes_template_arguments(tmp_path):
    argv = [
        "model",
        "--data",
        file_of(tmp_path, ROWS["messages"]),
        "--chat_template_kwargs",
        '{"enable_thinking": false}',
    ]
    args = _parser().parse_args(argv)
    contexts, *_ = cut(rows_of(args), TOKENIZER, args)
    assert TOKENIZER.decode(contexts[0]).endswith("<think>\n\n</think>\n\n")


def test_references_are_the_answers_as_the_template_renders_them(tmp_path):
    assert asked(tmp_path, ROWS["reasoning"]).references == ["<think>\nr\n</think>\n\nA"]
    assert "<function=w>\n<parameter=city>\nOslo\n</parameter>" in asked(tmp_path, ROWS["a call"]).references[0]
    assert asked(tmp_path, ROWS["parts"]).references == ["A"]


def test_arguments_that_are_no_json_are_refused():
    with pytest.raises(ValueError, match="`chat_template_kwargs` is not JSON"):
        EvaluationOptions(suites=("rouge",), chat_template_kwargs="{")


def test_a_prompt_for_a_judge_has_no_pythons_notation():
    prompt = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
    assert readable(prompt) == "q"
    turn = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert readable([*prompt, turn, {"role": "tool", "content": "4"}]) == (
        'user: q\n\nassistant: {"name": "w", "arguments": "{\\"city\\": \\"Oslo\\"}"}\n\ntool: 4'
    )


def loaded(tmp_path, rows: list[dict], suite: str = "rouge", **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(load_suite(suite), EvaluationOptions(suites=(suite,), data=(str(path),), **options))


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"prompt": "q", "completion": None}, {}, "have an empty response in `completion`"),
        ({"prompt": None, "completion": "A"}, {}, "have a null in `prompt`"),
        ({"messages": ASKED}, {}, "do not end with an assistant turn in `messages`"),
        ({"messages": None}, {}, "have an empty response in `messages`"),
        ({"q": "q", "a": None}, {"prompt_template": "{{ q }}", "completion_template": "{{ a }}"}, "fails on, a null"),
        (
            {"q": "q", "a": []},
            {"prompt_template": "{{ q }}", "references_column": "a"},
            "have no reference, or a null, in `a`",
        ),
        ({"q": "q", "a": [None]}, {"prompt_template": "{{ q }}", "references_column": "a"}, "or a null, in `a`"),
    ],
)
def test_rows_that_training_would_refuse_are_refused_before_anything_is_generated(tmp_path, row, options, message):
    good = {
        "completion": {"prompt": "q", "completion": "A"},
        "messages": {"messages": ANSWERED},
        "a": {"q": "q", "a": ["A"] if "references_column" in options else "A"},
    }[[*row][-1]]
    with pytest.raises(ValueError, match=rf"1 of 3 rows .*{message}.*\(rows 1\)"):
        loaded(tmp_path, [good, row, good], **options)
    # Rows that nothing is asked of do not matter.
    assert loaded(tmp_path, [good, row], num_examples=1, **options).numbers == [0]


def test_a_completion_that_is_missing_does_not_matter_where_references_are_named(tmp_path):
    rows = [{"prompt": "q", "completion": None, "a": ["A"]}, {"prompt": "q", "completion": "A", "a": ["A"]}]
    assert len(loaded(tmp_path, rows, references_column="a").dataset) == 2
    with pytest.raises(ValueError, match=r"have a null in `prompt` \(rows 0\)"):
        loaded(tmp_path, [{**rows[0], "prompt": None}, rows[1]], references_column="a")


def test_references_are_lists(tmp_path):
    with pytest.raises(ValueError, match="--references_column a holds string, no lists of texts"):
        loaded(tmp_path, [{"q": "q", "a": "A"}], prompt_template="{{ q }}", references_column="a")


def test_measure_refuses_the_rows_that_training_refuses(tmp_path):
    args = _parser().parse_args(["model", "--data", file_of(tmp_path, {"prompt": "q", "completion": None})])
    with pytest.raises(ValueError, match=r"1 of 1 rows have an empty response in `completion`"):
        rows_of(args)


def test_two_beginnings_of_prompts_are_warned_of(tmp_path, caplog):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    given, suite = EvaluationOptions(suites=("rouge",), as_conversation=False), load_suite("rouge")
    items(loaded(tmp_path, [{"prompt": "<bos>q", "completion": "A"}]), suite, given, tokenizer)
    assert "1 of the first 1 rows begin with two `<bos>`" in caplog.text
