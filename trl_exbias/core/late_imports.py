"""PEFT and scikit-learn, which transformers imports whole for a class and a function, imported when these are first used.

A private surface of transformers 5.17 in this file: the two modules named below, and that each asks `is_…_available` once at its
top and again before every use. Where the libraries are installed, importing them is a quarter of what `exbias check` takes.
"""

import importlib
import sys
from collections.abc import Callable


# A module, what it asks before it imports a library, and what it imports from where.
_IMPORTS = (
    ("transformers.trainer_utils", "is_peft_available", "peft", ("PeftMixedModel", "PeftModel")),
    ("transformers.generation.candidate_generator", "is_sklearn_available", "sklearn.metrics", ("roc_curve",)),
)


def import_late() -> None:
    """
    Imports the two modules of transformers without their libraries, which follow when one of their functions needs them.
    Called before anything else imports them; does nothing for a module that is imported already.
    """
    from transformers import utils

    for module, question, library, names in _IMPORTS:
        is_available = getattr(utils, question)
        setattr(utils, question, _late(module, is_available, library, names))
        try:
            importlib.import_module(module)
        finally:
            setattr(utils, question, is_available)


def _late(module: str, is_available: Callable[[], bool], library: str, names: tuple[str, ...]) -> Callable[[], bool]:
    """`is_available`, except that `module` gets a no at its top and finds the names in place later."""
    asked = False

    def answer() -> bool:
        nonlocal asked
        # Modules that are imported on the way bind this function too: to them it says what is.
        asking = sys._getframe(1).f_globals
        if asking["__name__"] != module:
            return is_available()
        if not asked:
            asked = True
            return False
        if is_available() and names[0] not in asking:
            asking.update({name: getattr(importlib.import_module(library), name) for name in names})
        return is_available()

    return answer
