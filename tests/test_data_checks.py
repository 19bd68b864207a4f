import pytest
from datasets import Dataset

from trl_exbias.data_checks import check_train_dataset, dataset_form

from .tiny import conversations, plain_pairs


def chat(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


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


def test_an_iterable_dataset_is_refused_with_a_way_out():
    with pytest.raises(TypeError, match=r"`IterableDataset` cannot be rolled out.*Dataset.from_list"):
        check_train_dataset(plain_pairs().to_iterable_dataset(), "text")


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="must be a `datasets.Dataset`, got `list`"):
        check_train_dataset([{"text": "a"}], "text")
    with pytest.raises(ValueError, match="no rows"):
        check_train_dataset(plain_pairs().select([]), "text")


def test_many_bad_rows_are_counted_and_a_few_named():
    rows = [{"prompt": "a", "completion": ""}] * 9
    with pytest.raises(ValueError, match=r"9 of 9 .*\(rows 0, 1, 2, 3, 4, …\)"):
        check_train_dataset(Dataset.from_list(rows), "text")


def test_the_datasets_of_these_tests_are_fine():
    assert check_train_dataset(conversations(), "text") == "prompt-completion"
    assert check_train_dataset(plain_pairs(), "text") == "prompt-completion"
