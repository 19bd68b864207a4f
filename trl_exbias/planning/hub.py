"""What is available without a network: whether the hub answers, and files of a model from a folder, the cache or the hub.

Nothing here waits: a hub that does not answer within seconds is taken to be away.
"""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

from ..core.errors import UsageError
from ..core.local_names import is_local


_TIMEOUT = 2.0  # seconds
_OF_A_PROXY = (407, 502, 503, 504)
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_TRUE = ("1", "ON", "YES", "TRUE")

#: How a message says [`NotAtHand`], after the name.
AWAY = "is neither a folder here nor in the cache, and the hub does not answer"

T = TypeVar("T")


class NotAtHand(Exception):
    """It is neither a folder here nor in the cache, and the hub does not answer: nothing can be said about it."""


class Hub:
    """
    Whether the hub answers, asked once, in the background.

    Ask early ([`~Hub.ask`]): where it is away, that is known by the time it matters.
    """

    def __init__(self) -> None:
        self._answers: bool | None = False if _is_offline() else None
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Begins to find out; returns at once."""
        if self._answers is None and self._thread is None:
            # A thread, because looking a name up has no timeout of its own; a daemon, so that nothing waits for it.
            self._thread = threading.Thread(target=self._try, daemon=True)
            self._thread.start()

    @property
    def answers(self) -> bool:
        """Whether the hub can be reached; waits for at most two seconds."""
        if self._answers is None:
            self.ask()
            if self._thread is not None:
                self._thread.join(_TIMEOUT)
            self._answers = bool(self._answers)
        return self._answers

    def read(self, name: str, load: Callable[..., T], **kwargs: Any) -> T:
        """
        `load(name, **kwargs)` from a folder or the cache, else from the hub.

        Raises:
            NotAtHand: if it is in neither and the hub is away.
            ValueError: if it is missing or cannot be read; the message says why.
        """
        try:
            return load(name, **kwargs, local_files_only=True)
        except (OSError, ValueError) as error:
            if is_local(name):
                raise UsageError(_first_line(error)) from error
            if not self.answers:
                raise NotAtHand(name) from error
        try:
            return load(name, **kwargs)
        except (OSError, ValueError) as error:
            raise UsageError(_first_line(error)) from error

    def _try(self) -> None:
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        request = urllib.request.Request(endpoint, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_TIMEOUT).close()
        except urllib.error.HTTPError as error:
            # A refusal is an answer all the same, unless it is that of a proxy that does not reach the hub.
            self._answers = error.code not in _OF_A_PROXY
        except (OSError, ValueError):
            self._answers = False
        else:
            self._answers = True


def uses_hub(recipe: dict[str, Any]) -> bool:
    """Whether anything that a recipe names may have to be looked up on the hub."""
    sources = recipe.get("datasets") or []
    keys = ["model_name_or_path", "teacher_model_name_or_path", "chat_template_path"]
    if recipe.get("teacher_server_base_url") is not None:
        keys.remove("teacher_model_name_or_path")  # a name on that server
    names = [recipe.get(key) for key in keys]
    teachers = recipe.get("teachers")
    names += teachers.values() if isinstance(teachers, dict) else []
    names += [recipe.get("dataset_name"), *(source.get("path") for source in sources if isinstance(source, dict))]
    return any(isinstance(name, str) and not is_local(name) for name in names)


def _is_offline() -> bool:
    return any(os.environ.get(name, "").upper() in _TRUE for name in _OFFLINE)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
