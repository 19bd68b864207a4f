"""What a command shows: its own words, bars that take long, errors. What libraries say besides goes into a file of the run."""

import logging
import sys
from pathlib import Path
from typing import Any


_OURS = "trl_exbias"


class RunLog(logging.Handler):
    """
    Takes every log record of the process; holds them until [`~RunLog.open`] says which file they belong in.

    On the screen remain the package's own records and errors of libraries. Warnings of libraries are counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_warnings = 0
        self.path: Path | None = None
        self._held: list[logging.LogRecord] = []
        self._file: logging.Handler | None = None

    def start(self) -> None:
        """Takes over from the handlers that libraries have set up on import."""
        import datasets.utils.logging as of_datasets
        import huggingface_hub.utils.logging as of_hub
        import transformers.utils.logging as of_transformers

        for library in (of_datasets, of_hub, of_transformers):
            library.get_logger()  # sets its handlers up, if nobody has
        for logger in [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]:
            for handler in [each for each in logger.handlers if _is_screen(each)]:
                logger.removeHandler(handler)
                logger.propagate = True
        screen = logging.StreamHandler()
        screen.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        screen.addFilter(lambda record: _is_ours(record) or record.levelno >= logging.ERROR)
        for handler in [each for each in logging.root.handlers if _is_screen(each)]:
            logging.root.removeHandler(handler)
        logging.root.addHandler(screen)
        logging.root.addHandler(self)
        logging.getLogger(_OURS).setLevel(logging.INFO)
        logging.captureWarnings(True)

    def emit(self, record: logging.LogRecord) -> None:
        self.num_warnings += record.levelno == logging.WARNING and not _is_ours(record)
        if self._file is None:
            self._held.append(record)
        else:
            self._file.handle(record)

    def open(self, path: Path) -> None:
        """Writes what was held, and all that follows, to the end of a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self.path = logging.FileHandler(path, encoding="utf-8"), path
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._write_held(self._file)

    def spill(self) -> None:
        """After a crash: what is in no file goes to the screen, and where there is a file, its name does."""
        if self.path is not None:
            print(f"Log: {self.path}", file=sys.stderr)
        else:
            self._write_held(logging.StreamHandler())

    def _write_held(self, handler: logging.Handler) -> None:
        for record in self._held:
            handler.handle(record)
        self._held.clear()

    def summary(self) -> str:
        """One line on what was not shown."""
        warnings = {0: "", 1: " (1 warning of a library)"}.get(
            self.num_warnings, f" ({self.num_warnings} warnings of libraries)"
        )
        return f"Log: {self.path}{warnings}"


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] == _OURS


def _is_screen(handler: Any) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream in (
        sys.stdout,
        sys.stderr,
        sys.__stdout__,
        sys.__stderr__,
    )
