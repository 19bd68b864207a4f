"""Loads a command's data and gives its rows the columns that the trainers read."""

import logging
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from trl import DatasetMixtureConfig, get_dataset

from .data_arguments import DataArguments
from .recipe import RecipeError


logger = logging.getLogger(__name__)

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def load_split(data_args: DataArguments, mixture: DatasetMixtureConfig, kind: str) -> Dataset:
    """
    The `"train"` or `"test"` data of a command, rendered through its templates.

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
        dataset = _load(data_args.dataset_name, data_args.dataset_config, split, data_args.dataset_streaming)
    else:
        raise RecipeError("recipe", ["either `dataset_name` or `datasets` is needed."])
    return render(dataset, data_args)


def render(dataset: Dataset, data_args: DataArguments) -> Dataset:
    """`prompt` and `completion` from the templates; the dataset as it is where none is given."""
    templates = {"prompt": data_args.prompt_template, "completion": data_args.completion_template}
    if not any(templates.values()):
        return dataset
    problems = [f"`{name}_template` is missing." for name, text in templates.items() if not text]
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
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
        text = {name: template.render(row) for name, template in compiled.items()}
        if not data_args.as_conversation:
            return text
        return {
            "prompt": [{"role": "user", "content": text["prompt"]}],
            "completion": [{"role": "assistant", "content": text["completion"]}],
        }

    return dataset.map(render_row, remove_columns=dataset.column_names, desc="Rendering rows")


def _load(name: str, config: str | None, split: str, streaming: bool) -> Dataset:
    path = Path(name)
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise RecipeError("recipe", [f"`dataset_name: {name}` is no {', '.join(_BUILDERS)} file."])
        # One file is one split: `train`, or a slice of it.
        return load_dataset(_BUILDERS[path.suffix], data_files=str(path), split=split, streaming=streaming)
    if path.is_dir() and config is not None:
        # A recipe names the hub's configuration; the same data in a folder have none.
        logger.warning(f"`dataset_config: {config}` is not used: `{name}` is a local folder.")
        config = None
    return load_dataset(name, config, split=split, streaming=streaming)
