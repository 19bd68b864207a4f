"""A child process that serves calls: started, watched and ended by its parent, whatever either of them runs into."""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import ExbiasError


_LOG_LINES = 15


class RolloutEngineError(ExbiasError, RuntimeError):
    """A rollout engine could not start, died, hung, or serves other weights than it was given; says what to do."""


class EngineLost(RolloutEngineError):
    """The engine's process died or hangs: another one may do better."""


def _pipe() -> list[int]:
    """
    A pipe whose ends are not standard streams.

    Where the parent has closed its own, as a daemon does, a plain pipe would take their numbers, and the child, which is given
    other standard streams, would read `/dev/null`.
    """
    ends = list(os.pipe())
    for place, end in enumerate(ends):
        if end <= 2:
            ends[place] = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(end)
    return ends


class EngineProcess:
    """
    Runs `python -m module READ_FD WRITE_FD` and calls it: a JSON line down, JSON lines up until a result or an error.

    The child leads a process group of its own, which ends when the pipe to it closes (the child's part) or with
    [`~EngineProcess.close`] (ours): no orphan is left, on Ctrl-C or `kill -9` of the parent either.

    Args:
        module (`str`): Module to run.
        env (`Mapping[str, str]`): Environment of the child.
        log (`Path`, *optional*): Takes the child's stdout and stderr; its end is part of every error.
        timeout (`float`): Seconds without a sign of life (any line) after which the child counts as hung.
        on_progress (`Callable[[int, int], None]`): Called with sequences and tokens finished since the last call.
    """

    def __init__(
        self,
        module: str,
        env: Mapping[str, str],
        log: Path | None,
        timeout: float,
        on_progress: Callable[[int, int], None],
    ):
        self.log, self.timeout, self.on_progress = log, timeout, on_progress
        requests_read, requests_write = _pipe()
        answers_read, answers_write = _pipe()
        # A child that hangs does not read: a write that blocked would wait for it past any timeout.
        os.set_blocking(requests_write, False)
        self._requests, self._answers = requests_write, answers_read
        self._unread = b""
        output = subprocess.DEVNULL if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(requests_read), str(answers_write)],
                pass_fds=(requests_read, answers_write),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(env),
                # Ctrl-C is for the parent, which then ends the child.
                start_new_session=True,
            )
        finally:
            for descriptor in (requests_read, answers_write, *([] if log is None else [output])):
                os.close(descriptor)

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, verb: str, **arguments: Any) -> Any:
        """
        The result of a verb.

        Raises:
            RolloutEngineError: if the child reports an error.
            EngineLost: if it dies, or gives no sign of life for `timeout` seconds.
        """
        self._send(verb, json.dumps({"verb": verb, **arguments}).encode() + b"\n")
        while True:
            answer = self._next_answer(verb)
            if "error" in answer:
                raise RolloutEngineError(f"vLLM failed in `{verb}`: {answer['error']}.{self._end_of_log()}")
            if "result" in answer:
                return answer["result"]
            self.on_progress(answer["sequences"], answer["tokens"])

    def close(self) -> None:
        """Ends the child and everything that it started; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._requests)
        os.close(self._answers)

    def _send(self, verb: str, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            if not select.select([], [self._requests], [], self.timeout)[1]:
                raise self._hung(verb)
            try:
                rest = rest[os.write(self._requests, rest) :]
            except BrokenPipeError:
                raise self._dead(verb) from None

    def _next_answer(self, verb: str) -> dict[str, Any]:
        while b"\n" not in self._unread:
            # Not `readline`: half a line of a child that hangs would block for ever.
            if not select.select([self._answers], [], [], self.timeout)[0]:
                raise self._hung(verb)
            more = os.read(self._answers, 1 << 20)
            if not more:
                raise self._dead(verb)
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _hung(self, verb: str) -> EngineLost:
        return EngineLost(
            f"vLLM gave no sign of life for {self.timeout:g} seconds during `{verb}`.{self._end_of_log()}"
        )

    def _dead(self, verb: str) -> EngineLost:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        status = self._process.poll()
        how = f"was killed by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
        return EngineLost(f"vLLM's process {how} during `{verb}`.{self._end_of_log()}")

    def _end_of_log(self) -> str:
        if self.log is None:
            return ""
        return f" The end of {self.log}:\n" + "\n".join(last_lines(self.log, _LOG_LINES))


def last_lines(path: Path, count: int) -> Sequence[str]:
    """The last lines of a text file, however long it is."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 400 * count))
        return file.read().decode(errors="replace").splitlines()[-count:]
