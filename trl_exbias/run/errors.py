"""A run that ends itself, to be resumed or looked at: nothing that was computed is lost."""

import errno
from pathlib import Path

from ..core.errors import ExbiasError


#: Exit status of a run that was told to go (SIGTERM) and saved before it did: start it again with
#: `resume_from_checkpoint`. (HTCondor's customary code for "checkpointed, resume me".)
RESUME_EXIT_CODE = 85


class RunStoppedError(ExbiasError, RuntimeError):
    """The run cannot continue as it is; the message says why, what is kept, and how to continue."""


class NonFiniteLossError(RunStoppedError):
    """A loss, or a weight about to be saved, was NaN or infinite."""


class DegenerateRolloutsError(RunStoppedError):
    """Nearly all rollouts of a phase are empty, cut off, or one token over and over."""


class NotWrittenError(RunStoppedError):
    """A file of the run could not be written; the message says what failed, and asks for room only where there is none."""

    def __init__(self, path: Path, error: Exception, kept: str):
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Make room" if is_full else "Remove the cause"
        name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        super().__init__(
            f"{path} could not be written: {name}{error}. {kept} {remedy}, then continue with `resume_from_checkpoint=True`."
        )


class PreemptedError(SystemExit):
    """SIGTERM came; the run has saved and ends with [`RESUME_EXIT_CODE`]."""

    def __init__(self, message: str):
        super().__init__(RESUME_EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message
