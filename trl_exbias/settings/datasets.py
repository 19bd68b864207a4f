"""Loads a command's data and gives its rows the columns that the trainers read."""

import logging
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from jinja2 import StrictUndefined, Template, TemplateError, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from trl import DatasetMixtureConfig, get_dataset

from ..chat.row_checks import Problems, batches
from ..chat.turns import is_list
from ..core.branches import TEACHER_NAME
from ..core.errors import UsageError
from ..core.local_names import BUILDERS, check_local
from .data_arguments import DataArguments
from .recipe import RecipeError


logger = logging.getLogger(__name__)

_OF_NULLS = "Drop them, or test for it in the template: `{% if column is not none %}`."


def load_split(
    data_args: DataArguments, mixture: DatasetMixtureConfig, kind: str, whole_documents: bool = False
) -> Dataset:
    """
    The `"train"` or `"test"` data of a command, rendered through its templates.

    Args:
        whole_documents (`bool`, *optional*, defaults to `False`): A text file is one row, not a row a line.

    Raises:
        RecipeError: if neither `dataset_name` nor `datasets` is given, or a template does not fit the columns.
    """
    if mixture.datasets:
        splits = get_dataset(mixture)
        if kind not in splits:
            raise RecipeError("recipe", ["evaluation needs `test_split_size` when `datasets` is given."])
        dataset = splits[kind]
    elif data_args.dataset_name:
        split = data_args.dataset_train_split if kind == "train" else data_args.dataset_test_split
        dataset = load_rows(
            data_args.dataset_name, data_args.dataset_config, split, data_args.dataset_streaming, whole_documents
        )
    else:
        raise RecipeError("recipe", ["either `dataset_name` or `datasets` is needed."])
    return render(dataset, data_args)


def render(dataset: Dataset, data_args: DataArguments) -> Dataset:
    """`text`, or `prompt` and `completion`, from the templates; the dataset as it is where none is given."""
    templates = {name: getattr(data_args, f"{name}_template") for name in ("prompt", "completion", "text")}
    problems = []
    if templates.pop("text") is not None:
        problems += [f"`{name}_template` and `text_template` exclude each other." for name, t in templates.items() if t]
        templates = {"text": data_args.text_template}
    if data_args.document_column is not None:
        if "text" not in templates:
            problems.append("`document_column` joins plain text: say which with `text_template`.")
        if data_args.document_column not in dataset.column_names:
            problems.append(
                f"`document_column: {data_args.document_column}` is not a column of the data (columns: "
                f"{', '.join(dataset.column_names)})."
            )
    if not any(templates.values()) and not problems:
        return dataset
    problems += [f"`{name}_template` is missing." for name, text in templates.items() if not text]
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, finalize=_reject_null
    )
    for name, text in templates.items():
        try:
            unknown = meta.find_undeclared_variables(environment.parse(text or "")) - set(dataset.column_names)
        except TemplateError as error:
            problems.append(f"`{name}_template` is not valid jinja: {error}.")
            continue
        if unknown:
            problems.append(
                f"`{name}_template` uses {sorted(unknown)}, which the data do not have (columns: "
                f"{', '.join(dataset.column_names)})."
            )
    if problems:
        raise RecipeError("recipe", problems)
    compiled = {name: environment.from_string(text) for name, text in templates.items()}

    def render_row(row: dict[str, Any]) -> dict[str, Any]:
        text = {name: _render(template, row) for name, template in compiled.items()}
        if not data_args.as_conversation or "text" in text:
            return text
        return {
            "prompt": [{"role": "user", "content": text["prompt"]}],
            "completion": [{"role": "assistant", "content": text["completion"]}],
        }

    others = [name for name in dataset.column_names if name != TEACHER_NAME]
    rendered = dataset.map(render_row, remove_columns=others, desc="Rendering rows")
    if isinstance(rendered, Dataset):
        _check_nulls(rendered, {name: f"`{name}_template` writes, or fails on, a null" for name in compiled})
    if data_args.document_column is None:
        return rendered
    _check_nulls(dataset, {data_args.document_column: f"`document_column: {data_args.document_column}` is null"})
    documents: dict[Any, list[str]] = {}
    for document, text in zip(dataset[data_args.document_column], rendered["text"], strict=True):
        documents.setdefault(document, []).append(text)
    return Dataset.from_dict({"text": [" ".join(texts) for texts in documents.values()]})


class _NullError(Exception):
    """A template has come to write a null."""


def _reject_null(value: Any) -> Any:
    if value is None:  # jinja would write the word "None"
        raise _NullError
    return value


def _render(template: Template, row: dict[str, Any]) -> str | None:
    try:
        return template.render(row)
    except (_NullError, UndefinedError, TypeError):  # an expression on a null fails in one way or another
        return None


def _check_nulls(dataset: Dataset, said: dict[str, str]) -> None:
    """Refuses nulls in some columns of texts or single messages, with what a message says of each column."""
    problems = Problems(f"{len(dataset)} rows")
    for start, batch in batches(dataset, list(said)):
        problems.begin_batch(start)
        for name, what in said.items():
            column = batch[name]
            texts = pc.struct_field(column.flatten(), "content") if is_list(column.type) else column
            problems.add(texts.is_null(), f"are of no use: {what}", _OF_NULLS)
    if problems.messages():
        raise RecipeError("recipe", problems.messages())


def load_rows(
    name: str, config: str | None, split: str, streaming: bool = False, whole_documents: bool = False
) -> Dataset:
    """
    A split (or a slice of one) of a hub data set, a folder or a file.

    Raises:
        UsageError: for a file that is not there, or of a kind that cannot be read.
    """
    check_local("dataset_name", name)
    path = Path(name)
    if path.is_file():
        if path.suffix not in BUILDERS:
            raise RecipeError("recipe", [f"`dataset_name: {name}` is not a {', '.join(BUILDERS)} file."])
        # One file is one split: `train`, or a slice of it.
        options = {"sample_by": "document"} if path.suffix == ".txt" and whole_documents else {}
        options |= {"data_files": str(path)}
        return _load(name, split, BUILDERS[path.suffix], streaming=streaming, **options)
    if path.is_dir() and config is not None:
        # A recipe names the hub's configuration; the same data in a folder have none.
        logger.warning(f"`dataset_config: {config}` is not used: `{name}` is a local folder.")
        config = None
    return _load(name, split, name, config, streaming=streaming)


def _load(shown: str, split: str, *args: Any, **kwargs: Any) -> Dataset:
    try:
        return load_dataset(*args, split=split, **kwargs)
    except (ValueError, OSError, DatasetGenerationError) as error:
        # `datasets` has a kind of error for each thing that can be wrong with a name, a split, a configuration or a file.
        cause = error.__cause__ or error if isinstance(error, DatasetGenerationError) else error
        raise UsageError(f"The split `{split}` of `{shown}` cannot be loaded: {cause}") from error
