"""Records on the disk, one line of JSON each, written as they come: what was there before a kill is there after it."""

import json
from pathlib import Path
from typing import Any


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Adds a line; it is on its way to the disk when this returns. Processes may share a file."""
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    # One unbuffered write at the end of the file, whole: lines of several processes do not mix.
    with open(path, "ab", buffering=0) as file:
        file.write(line)


def read_records(path: Path) -> list[Any]:
    """
    The lines of a file; `None` in place of one that cannot be read (the last one, of a process that was killed while it
    wrote). Such a last line is ended, so that the next one begins a line of its own.
    """
    contents = path.read_bytes()
    if contents and not contents.endswith(b"\n"):
        with open(path, "ab") as file:
            file.write(b"\n")
    return [_record(line) for line in contents.splitlines() if line.strip()]


def _record(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
