"""Names that can only be paths: what is not there is not looked for on the hub."""

from pathlib import Path

from .errors import UsageError


#: Kinds of data files, and the builder of each.
BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def is_local(name: str) -> bool:
    """Whether a name can only be a path: it exists, or it could be no name of the hub (`owner/name`)."""
    path = Path(name)
    is_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix in BUILDERS
    return is_path or path.exists()


def check_local(key: str, name: str) -> None:
    """
    Refuses the value of a key that can only be a path, where nothing is.

    Raises:
        UsageError: says which part of the path is there.
    """
    path = Path(name)
    if not is_local(name) or path.exists():
        return
    hint = " `~` is not expanded here: write the folder out." if name.startswith("~") else ""
    there = next((parent for parent in path.parents if parent.is_dir()), Path())
    where = f"There is a folder `{there}`, but no `{path.relative_to(there)}` in it." if str(there) != "." else ""
    raise UsageError(f"`{key}: {name}` is not there. {where}{hint}".rstrip())
