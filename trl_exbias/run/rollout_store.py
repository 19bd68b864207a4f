"""Rollouts on disk: parquet shards and a manifest, durable the moment they exist.

A rollout cannot be made twice, because the policy that made it moves on. So a shard is complete or absent (written
under another name, flushed, renamed), the manifest says what must be there, and a run that was killed continues with the
shard that was being written.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ..core.branches import TOKEN_WEIGHTS, Branch
from ..core.errors import UsageError
from ..core.files import write_atomically


MANIFEST = "manifest.json"
#: Names of the shards.
SHARDS = "shard-*.parquet"
_STATS_KEY = b"trl_exbias_stats"
_HEADER_KEY = b"trl_exbias_header"
_SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("kind", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("weight", pa.float32()),
        ("score", pa.float64()),
    ]
)


class RolloutStoreError(UsageError):
    """Rollouts on disk are damaged, or belong to another run."""


class RolloutStore:
    """
    The rollouts of one iteration: `rollouts/iteration-<k>/` of a run directory.

    Args:
        folder (`str` or `Path`):
            Where the shards and the manifest live. Made when the first rollout is.

    The shards are ordinary parquet files (`datasets.load_dataset("parquet", data_files=f"{folder}/*.parquet")`) with one branch a row:
    `example_id` (row of the training data), `kind`, `input_ids`, `labels` (-100: none), `weight`, `score`, and
    `token_weights` where tokens have weights of their own.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or `None` where no rollout was begun."""
        path = self.folder / MANIFEST
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise RolloutStoreError(
                f"{path} is not valid JSON ({error}). {_REMEDY.format(folder=self.folder)}"
            ) from error

    @property
    def is_complete(self) -> bool:
        return bool(self.manifest and self.manifest["complete"])

    def begin(self, header: dict[str, Any], num_shards: int) -> None:
        """
        Opens the store for rollouts described by `header`, keeping shards that an interrupted run left for them.

        Raises:
            RolloutStoreError: where rollouts with other settings stand here already.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.manifest is None:
            strangers = sorted(path.name for path in self.folder.glob("*.parquet"))
            if strangers:
                raise RolloutStoreError(
                    f"{self.folder} holds {len(strangers)} shards but no {MANIFEST}. {_REMEDY.format(folder=self.folder)}"
                )
            manifest = {"format": 1, "complete": False, "header": header, "num_shards": num_shards}
            self._write_manifest(manifest)
        else:
            self.check(header)

    def check(self, header: dict[str, Any]) -> None:
        """Raises a [`RolloutStoreError`] that names every setting in which the stored rollouts differ from `header`."""
        stored = self.require_manifest()["header"]
        differing = [
            f"`{key}` was {stored.get(key)!r} and is now {header.get(key)!r}"
            for key in dict.fromkeys([*stored, *header])
            if stored.get(key) != json.loads(json.dumps(header.get(key)))
        ]
        if differing:
            raise RolloutStoreError(
                f"The rollouts in {self.folder} were made with other settings: {'; '.join(differing)}. Resume with the "
                "settings of the run, or start over with `overwrite_output_dir=True` or another `output_dir`."
            )

    def missing_shards(self) -> list[int]:
        """Shards that the manifest calls for and that are not there yet."""
        return [i for i in range(self.require_manifest()["num_shards"]) if not self._shard(i).is_file()]

    def write_shard(self, index: int, rollouts: dict[int, list[Branch]], stats: dict[str, list[float]]) -> None:
        """Writes the branches of some examples, with the counts that the phase's metrics are computed from, as one shard."""
        rows = [(example_id, branch) for example_id, branches in rollouts.items() for branch in branches]
        schema, columns = _SCHEMA, {name: [getattr(branch, name) for _, branch in rows] for name in _SCHEMA.names[1:]}
        if any(isinstance(branch.weight, list) for _, branch in rows):
            schema = _SCHEMA.append(pa.field(TOKEN_WEIGHTS, pa.list_(pa.float32())))
            columns[TOKEN_WEIGHTS] = [branch.weight if isinstance(branch.weight, list) else None for _, branch in rows]
            columns["weight"] = [1.0 if isinstance(branch.weight, list) else branch.weight for _, branch in rows]
        metadata = {_STATS_KEY: json.dumps(stats).encode(), _HEADER_KEY: self._header_digest().encode()}
        table = pa.table(
            {"example_id": [example_id for example_id, _ in rows], **columns},
            schema=schema,
        ).replace_schema_metadata(metadata)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_atomically(self._shard(index), sink.getvalue().to_pybytes())

    def finish(self) -> dict[str, Any]:
        """Completes the manifest with counts and hashes once every shard is there, and returns it."""
        manifest = self.require_manifest()
        assert not self.missing_shards(), "finish() before every shard was written"
        shards, num_rows = [], 0
        stats: dict[str, list[float]] = {}
        for path, content in self._contents(manifest["num_shards"]):
            file = pq.ParquetFile(pa.BufferReader(content))
            if file.schema_arrow.metadata.get(_HEADER_KEY) != self._header_digest().encode():
                raise RolloutStoreError(
                    f"{path} belongs to rollouts with other settings. {_REMEDY.format(folder=self.folder)}"
                )
            for name, (total, count) in json.loads(file.schema_arrow.metadata[_STATS_KEY]).items():
                have = stats.setdefault(name, [0.0, 0.0])
                have[0], have[1] = have[0] + total, have[1] + count
            num_rows += file.metadata.num_rows
            shards.append({"file": path.name, "rows": file.metadata.num_rows, "sha256": _sha256(content)})
        content_hash = _sha256("".join(shard["sha256"] for shard in shards).encode())
        manifest |= {"complete": True, "num_rows": num_rows, "sha256": content_hash, "stats": stats, "shards": shards}
        self._write_manifest(manifest)
        return manifest

    def read(self) -> Dataset:
        """
        All branches, in shard order, every file checked against the manifest's hash.

        Raises:
            RolloutStoreError: for a missing, truncated or altered file; the message names it.
        """
        manifest = self.require_manifest()
        if not manifest["complete"]:
            raise RolloutStoreError(f"The rollouts in {self.folder} are not complete.")
        hashes = {shard["file"]: shard["sha256"] for shard in manifest["shards"]}
        tables = []
        for path, content in self._contents(manifest["num_shards"]):
            if _sha256(content) != hashes.get(path.name):
                raise RolloutStoreError(
                    f"{path} was truncated or altered: its hash is not the manifest's. "
                    f"{_REMEDY.format(folder=self.folder)}"
                )
            tables.append(pq.read_table(pa.BufferReader(content)).replace_schema_metadata(None))
        return Dataset(pa.concat_tables(tables or [_SCHEMA.empty_table()], promote_options="default"))

    def _contents(self, num_shards: int) -> Iterator[tuple[Path, bytes]]:
        for index in range(num_shards):
            path = self._shard(index)
            if not path.is_file():
                raise RolloutStoreError(f"{path} is missing. {_REMEDY.format(folder=self.folder)}")
            yield path, path.read_bytes()

    def require_manifest(self) -> dict[str, Any]:
        """
        The manifest.

        Raises:
            RolloutStoreError: if no rollout was begun.
        """
        manifest = self.manifest
        if manifest is None:
            raise RolloutStoreError(f"{self.folder / MANIFEST} is missing. {_REMEDY.format(folder=self.folder)}")
        return manifest

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=2).encode())

    def _header_digest(self) -> str:
        return _sha256(json.dumps(self.require_manifest()["header"], sort_keys=True).encode())

    def _shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.parquet"


_REMEDY = (
    "Restore {folder} from a copy, or resume from a checkpoint before it was made (delete the folder, and it is rolled "
    "out again when the run gets there)."
)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
