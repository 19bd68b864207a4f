"""Files that survive: whole or absent after a crash, on the disk and not merely in the kernel's buffers, written by one at a time."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module or nothing


#: Share of the free disk that may be filled with what could be computed again. The rest is for checkpoints.
SHARE_OF_DISK = 0.5


def write_atomically(path: Path, content: bytes) -> None:
    """Puts `content` at `path` so that after a crash there is the old file or the whole new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)  # the rename itself lives in the folder


def flush(path: Path) -> None:
    """
    Returns when a file, or the entries of a folder, are on the disk.

    Does nothing for a folder where the system cannot open one (Windows): its file system keeps a journal of renames.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def existing_parent(folder: str | Path) -> Path:
    """The folder itself or the nearest above it that exists."""
    path = Path(folder).expanduser().absolute()
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


def free_bytes(folder: str | Path) -> int:
    """Free bytes of the disk that a folder is on, or will be."""
    return shutil.disk_usage(existing_parent(folder)).free


def lock(file: IO) -> bool:
    """
    Whether this process is now the only one that holds `file`, for as long as the file is open.

    `True` where the system has no such locks: there two processes must not be started on one folder.
    """
    if fcntl is None:
        return True
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@contextlib.contextmanager
def closed_pipe_is_no_error() -> Iterator[None]:
    """Ends a command quietly whose reader (`| head`) has seen enough; its status is that of a program that SIGPIPE ended."""
    import sys

    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer would be written, and fail, once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
