"""What a check has found: errors, which would stop the run, and warnings, which would not or could not be looked at."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """
    Args:
        level (`str`): `"error"` or `"warning"`.
        subject (`str`): What it is about: `keys`, `values`, `data`, `tokenizer`, ….
        message (`str`): What was given, what is allowed, what to do.
    """

    level: str
    subject: str
    message: str


@dataclass
class Findings:
    """
    Collects findings, each once.

    Args:
        on_found (`Callable[[Finding], None]`, *optional*): Called with each as it is found.
    """

    on_found: Callable[[Finding], None] = lambda finding: None
    found: list[Finding] = field(default_factory=list)

    def error(self, subject: str, message: str) -> None:
        self._add(Finding(ERROR, subject, message))

    def warn(self, subject: str, message: str) -> None:
        self._add(Finding(WARNING, subject, message))

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.found if finding.level == ERROR]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.found if finding.level == WARNING]

    @contextlib.contextmanager
    def collect(self, subject: str) -> Iterator[None]:
        """Turns what the package's own checks raise (`ValueError`, `TypeError`) into errors about `subject`."""
        try:
            yield
        except (ValueError, TypeError) as error:
            # A `RecipeError` lists several.
            for problem in getattr(error, "problems", None) or [str(error)]:
                self.error(subject, problem)

    def _add(self, finding: Finding) -> None:
        if finding not in self.found:
            self.found.append(finding)
            self.on_found(finding)
