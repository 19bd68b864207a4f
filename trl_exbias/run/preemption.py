"""SIGTERM, as a scheduler sends it before it takes a machine away: save, and leave with a code that says "resume me"."""

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .errors import RESUME_EXIT_CODE, PreemptedError
from .processes import Processes


logger = logging.getLogger(__name__)


class Preemption(TrainerCallback):
    """
    Listens for SIGTERM while a run lasts; at the next step, or the next shard of rollouts, all processes agree to go.

    Whoever handles the signal already keeps it. As a context manager it listens and, afterwards, restores.

    Args:
        processes ([`Processes`]): The processes of the run.
        can_resume (`bool`): Whether what is saved can be resumed from; where not, the signal is left alone.
    """

    def __init__(self, processes: Processes, can_resume: bool):
        self.processes, self.can_resume = processes, can_resume
        self.asked = False
        self.leaving = False
        self._listening = False

    def __enter__(self) -> "Preemption":
        self._listening = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            and self.can_resume
        )
        if self._listening:
            signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._listening:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        # Not through `logging`, whose lock the interrupted code may hold.
        os.write(2, b"trl_exbias: SIGTERM: saving after this step, or this shard of rollouts\n")

    def agreed(self) -> bool:
        """Whether any process was asked to go. All processes must call it together."""
        self.leaving = self.leaving or self.processes.any(self.asked)
        return self.leaving

    def leave(self, kept: str) -> None:
        """
        Ends the run, which has saved what it has.

        Raises:
            PreemptedError: always; as an exit status it is [`RESUME_EXIT_CODE`].
        """
        message = (
            f"Stopped by SIGTERM; {kept}. Continue with `resume_from_checkpoint=True` (exit status {RESUME_EXIT_CODE})."
        )
        logger.warning(message)
        raise PreemptedError(message)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.agreed():
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # what time is left is for saving

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.leaving:
            control.should_evaluate = control.should_save = False
