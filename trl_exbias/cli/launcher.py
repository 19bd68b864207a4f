"""`accelerate launch` with the exit status of what it started, and SIGTERM handed on to it."""

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
from types import FrameType

from ..core.upstream import launch
from ..run.errors import RESUME_EXIT_CODE


# After SIGTERM torch's launcher kills its processes after this many seconds; a checkpoint of a 7B model takes
# longer than the usual 30.
_SECONDS_TO_SAVE = "600"


def run_launcher(arguments: argparse.Namespace) -> int:
    """
    Runs `accelerate launch` with parsed arguments.

    Returns:
        `int`: The script's exit status; [`RESUME_EXIT_CODE`] where it was told to go and has saved.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What it says of arguments that were not passed: the defaults are meant.
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SECONDS_TO_SAVE)
    if threading.current_thread() is threading.main_thread():
        # With several processes torch's launcher puts its own handler here, which does the same.
        signal.signal(signal.SIGTERM, _hand_on)
    try:
        launch(arguments)
    except subprocess.CalledProcessError as failure:
        return failure.returncode if failure.returncode >= 0 else 128 - failure.returncode
    except ChildFailedError as failure:
        statuses = {child.exitcode for child in failure.failures.values()}
        if RESUME_EXIT_CODE in statuses:
            return RESUME_EXIT_CODE
        print(failure, file=sys.stderr)
        return max([status for status in statuses if status > 0], default=1)
    except SignalException as stop:
        return RESUME_EXIT_CODE if stop.sigval == signal.SIGTERM else 128 + stop.sigval
    except SystemExit as stop:  # the launcher's way of passing a failure on
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    return 0


def _hand_on(number: int, frame: FrameType | None) -> None:
    import psutil

    for child in psutil.Process().children():
        child.send_signal(number)
