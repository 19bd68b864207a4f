"""Ending a process without taking the interpreter apart."""

import atexit
import os
import sys
import threading
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """
    Ends the process as Python does: threads are waited for, what `atexit` holds is run, the streams are written out. Only the
    modules are not taken apart.

    That takes a second after torch is imported. And it can abort a process that is done with its work: a thread of gloo that has
    just finished a collective releases the tensors, for which it needs the interpreter, which ends the threads that ask for it by
    then; C++ answers with `terminate called without an active exception` (pytorch/pytorch#190489). The launcher would take a run
    that has ended for one that has failed.

    Args:
        status (`int`): The exit status.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
