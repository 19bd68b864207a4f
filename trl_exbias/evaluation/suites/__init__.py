"""Suites of `exbias evaluate`: one file each, imported when it is asked for."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .suite import Suite

#: What each suite measures.
SUITES = {
    "likelihood": "perplexity, free-running cross-entropy and the gap",
    "rouge": "ROUGE-1/2/L F1 against the references",
    "gsm8k": "GSM8K, zero-shot chain of thought: official exact match, and math-verify",
    "math": "MATH, zero-shot chain of thought: boxed exact match, and math-verify",
    "degeneration": "repetition, distinct n-grams, length against the reference, truncation",
    "mauve": "MAUVE: how alike the distributions of responses and references are",
    "generative_perplexity": "perplexity of the responses under another model, next to the references'",
    "win_rate": "wins against the reference by a judge",
    "geval": "G-Eval: scores of a judge on criteria, divided by the reference's",
    "alpaca": "AlpacaEval 2.0: (length-controlled) win rate by a judge",
    "embeddings": "distance of the embeddings of responses and references, with violins",
}
#: Suites that ask a judge.
JUDGED = ("win_rate", "geval", "alpaca")


def load_suite(name: str) -> "Suite":
    """
    A suite by its name.

    Raises:
        ImportError: if a package that it needs is not installed; the message names the extra.
    """
    found = importlib.import_module(f".{name}", __name__).SUITE
    found.check_packages()
    return found
