import json

import pytest
from datasets import Dataset
from trl import DatasetMixtureConfig

from trl_exbias.settings.data_arguments import DataArguments
from trl_exbias.settings.datasets import load_split, render
from trl_exbias.settings.recipe import RecipeError


ROWS = [{"question": f"{i}?", "answers": [f"{i}!", "no"], "id": i} for i in range(6)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, rows in (("train", ROWS), ("test", ROWS[:2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_templates_make_prompts_and_completions():
    args = DataArguments(prompt_template="Q: {{ question }}", completion_template=" {{ answers[0] }}")
    assert render(Dataset.from_list(ROWS), args)[1] == {"prompt": "Q: 1?", "completion": " 1!"}


def test_templates_make_conversations():
    args = DataArguments(prompt_template="{{ question }}", completion_template="{{ answers[0] }}", as_conversation=True)
    assert render(Dataset.from_list(ROWS), args)[0] == {
        "prompt": [{"role": "user", "content": "0?"}],
        "completion": [{"role": "assistant", "content": "0!"}],
    }


def test_without_templates_the_data_stay_as_they_are():
    dataset = Dataset.from_list(ROWS)
    assert render(dataset, DataArguments()) is dataset


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ({"prompt_template": "{{ question }}"}, "`completion_template` is missing"),
        ({"prompt_template": "{{ problem }}", "completion_template": "x"}, r"uses \['problem'\].*columns: question"),
        ({"prompt_template": "{{ question", "completion_template": "x"}, "`prompt_template` is not valid jinja"),
    ],
)
def test_templates_that_do_not_fit_are_refused(templates, message):
    with pytest.raises(RecipeError, match=message):
        render(Dataset.from_list(ROWS), DataArguments(**templates))


@pytest.mark.parametrize("as_conversation", [False, True])
def test_a_null_that_a_template_writes_is_refused_with_its_rows(as_conversation):
    rows = Dataset.from_list(
        [*ROWS, {"question": None, "answers": ["x"], "id": 6}, {"question": "q", "answers": None, "id": 7}]
    )
    args = {"prompt_template": "{{ question }}", "completion_template": "{{ answers[0] }}"}
    with pytest.raises(RecipeError) as error:
        render(rows, DataArguments(**args, as_conversation=as_conversation))
    assert [problem.split(". ")[0] for problem in error.value.problems] == [
        "1 of 8 rows are of no use: `prompt_template` writes, or fails on, a null (rows 6)",
        "1 of 8 rows are of no use: `completion_template` writes, or fails on, a null (rows 7)",
    ]
    args["prompt_template"] = "{% if question is not none %}{{ question }}{% endif %}"
    assert render(rows.select([6]), DataArguments(**args))[0] == {"prompt": "", "completion": "x"}


def test_rows_of_no_document_are_refused():
    rows = Dataset.from_list([{"text": "a", "story": "s"}, {"text": "b", "story": None}])
    with pytest.raises(RecipeError, match=r"1 of 2 rows .*`document_column: story` is null \(rows 1\)"):
        render(rows, DataArguments(text_template="{{ text }}", document_column="story"))


def test_a_local_folder_a_file_and_a_slice_are_read(folder):
    mixture = DatasetMixtureConfig()
    assert len(load_split(DataArguments(dataset_name=str(folder)), mixture, "test")) == 2
    sliced = DataArguments(dataset_name=str(folder), dataset_train_split="train[:4]", dataset_config="main")
    assert load_split(sliced, mixture, "train")["id"] == [0, 1, 2, 3]
    file = DataArguments(dataset_name=str(folder / "train.jsonl"))
    assert len(load_split(file, mixture, "train")) == 6


def test_no_data_is_an_error():
    with pytest.raises(RecipeError, match="either `dataset_name` or `datasets`"):
        load_split(DataArguments(), DatasetMixtureConfig(), "train")


def test_a_file_of_an_unknown_kind_is_an_error(tmp_path):
    (tmp_path / "data.xls").write_text("x")
    with pytest.raises(RecipeError, match="is not a .json, .jsonl"):
        load_split(DataArguments(dataset_name=str(tmp_path / "data.xls")), DatasetMixtureConfig(), "train")
