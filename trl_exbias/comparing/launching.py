"""Flags of `accelerate launch` from a comparison file."""

from collections.abc import Container
from typing import Any


def launch_arguments(launch: dict[str, Any], only: Container[str] | None = None) -> list[str]:
    """
    The flags as a command line.

    Args:
        only (`Container[str]`, *optional*): Those that are wanted. Default: all.
    """
    argv = []
    for key, value in launch.items():
        if (only is None or key in only) and value not in (None, False):
            argv += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return argv
