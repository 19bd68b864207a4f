"""The first rows of a run's data, streamed, and how many there are in all, where that can be known without reading them."""

import json
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset, ReadInstruction, load_dataset, load_dataset_builder

from ..core.errors import UsageError
from ..settings.data_arguments import DataArguments
from ..settings.datasets import load_rows, render
from .hub import Hub, NotAtHand


#: Rows that are looked at.
NUM_ROWS = 64
_SLICE = re.compile(r"(?P<split>[^\[+]+)(\[:(?P<upto>\d+)\])?$")


@dataclass(frozen=True)
class FirstRows:
    """
    Args:
        rows (`datasets.Dataset`): The first rows, through the recipe's templates.
        num_read (`int`): Rows of the source that they were made of.
        num_rows (`int`, *optional*): Rows of the source in all; `None` where not known.
        is_bound (`bool`): Whether `num_rows` is only known to be not exceeded (a slice of data of unknown size).
    """

    rows: Dataset
    num_read: int
    num_rows: int | None
    is_bound: bool = False

    @property
    def are_all(self) -> bool:
        return self.num_rows == self.num_read


def first_rows(data_args: DataArguments, mixture: Any, kind: str, hub: Hub, whole_documents: bool = False) -> FirstRows:
    """
    The first rows of the `"train"` or `"test"` data, as [`~trl_exbias.settings.datasets.load_split`] would give them.

    Raises:
        NotAtHand: if the data are on the hub, which is away, and not in the cache.
        ValueError: if they cannot be read, or a template does not fit.
    """
    parts = []
    if mixture.datasets:
        for source in mixture.datasets:
            options = {"name": source.name, "data_dir": source.data_dir, "data_files": source.data_files}
            dataset, counts = _open(
                source.path, source.split, hub, lambda o=options, s=source, **k: load_dataset(s.path, **o, **k)
            )
            rows = list(islice(dataset, NUM_ROWS))
            if source.columns is not None:
                rows = _select(rows, source.columns)
            parts.append((rows, *(counts if source.fraction is None else (None, False))))
    elif data_args.dataset_name:
        name, config = data_args.dataset_name, data_args.dataset_config
        split = data_args.dataset_train_split if kind == "train" else data_args.dataset_test_split

        def load(split: str, streaming: bool) -> Any:
            return load_rows(name, config, split, streaming, whole_documents)

        dataset, counts = _open(name, split, hub, load, config)
        if whole_documents and name.endswith(".txt"):
            counts = (1, False)
        parts.append((list(islice(dataset, NUM_ROWS)), *counts))
    else:
        raise UsageError("either `dataset_name` or `datasets` is needed.")
    rows = [row for part, _, _ in parts for row in part]
    if not rows:
        raise UsageError(f"The {kind} data have no rows.")
    known = [count for _, count, _ in parts if count is not None]
    num_rows = sum(known) if len(known) == len(parts) else None
    if num_rows is None and len(parts) == 1 and len(rows) < NUM_ROWS:
        num_rows = len(rows)
    if num_rows is not None and mixture.datasets and mixture.test_split_size:
        num_rows -= round(num_rows * mixture.test_split_size)
    return FirstRows(
        render(Dataset.from_list(rows), data_args), len(rows), num_rows, any(is_bound for *_, is_bound in parts)
    )


def _open(name: str, split: str, hub: Hub, load: Any, config: str | None = None) -> tuple[Any, tuple[int | None, bool]]:
    """The rows of the whole split, and how many of them the slice has."""
    parsed = _SLICE.match(split)
    whole = parsed["split"] if parsed else re.split(r"[\[+]", split)[0]
    local = Path(name).exists()
    try:
        # What is on the hub and in the cache is not streamed: that would ask the hub again.
        dataset = load(split=whole, streaming=local or hub.answers)
        num_rows = _count(name, whole, config) if local else _known_rows(dataset, whole)
    except (OSError, ValueError) as error:
        if local or hub.answers or Path(name).is_absolute():
            problem = str(error.__cause__ or error).strip().splitlines()[0]
            raise UsageError(f"`{name}` cannot be read: {problem}") from error
        raise NotAtHand(name) from error
    if split == whole:
        return dataset, (num_rows, False)
    if num_rows is not None:
        parts = ReadInstruction.from_spec(split).to_absolute({whole: num_rows})
        return dataset, (sum((part.to or num_rows) - (part.from_ or 0) for part in parts), False)
    upto = int(parsed["upto"]) if parsed and parsed["upto"] else None
    return dataset, (upto, upto is not None)


def _select(rows: list[dict[str, Any]], columns: list[str]) -> list[dict[str, Any]]:
    missing = sorted(set(columns) - set(rows[0] if rows else ()))
    if rows and missing:
        raise UsageError(f"`columns` names {missing}, which the data do not have (columns: {', '.join(rows[0])}).")
    return [{column: row[column] for column in columns} for row in rows]


def _known_rows(dataset: Any, split: str) -> int | None:
    if not isinstance(dataset, IterableDataset):
        return len(dataset)
    splits = dataset.info.splits or {}
    return splits[split].num_examples or None if split in splits else None


def _count(name: str, split: str, config: str | None) -> int | None:
    """Rows of a split of local files, from their footers or line ends."""
    if Path(name).is_file():
        files = [name]
    else:
        data_files = load_dataset_builder(name).config.data_files or {}
        files = data_files.get(split, [])
    counts = [_rows_of(Path(file)) for file in files]
    known = [count for count in counts if count is not None]
    return sum(known) if counts and len(known) == len(counts) else None


def _rows_of(path: Path) -> int | None:
    match path.suffix:
        case ".parquet":
            return pq.read_metadata(path).num_rows
        case ".jsonl" | ".txt":
            return _lines(path)
        case ".json":
            with open(path, "rb") as file:
                # One object a line, or one array of them.
                if file.read(1) == b"{":
                    return _lines(path)
            return len(json.loads(path.read_bytes())) if path.stat().st_size < 1 << 26 else None
    return None


def _lines(path: Path) -> int:
    count, last = 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")
