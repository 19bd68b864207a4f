"""`exbias evaluate` as a function: models and suites in, figures out, generations and verdicts kept on the way."""

from typing import Any

from .options import EvaluationOptions


def evaluate(models: dict[str, str], options: EvaluationOptions) -> dict[str, Any]:
    """
    Evaluates models alike and writes `evaluation.json` to `options.output`.

    Args:
        models (`dict[str, str]`): Hub id, folder, LoRA adapter or run directory, by the name to give it.
        options ([`EvaluationOptions`]): What to measure, and how.

    Returns:
        `dict`: What `evaluation.json` holds:

    ```python
    {
        "format": 1,
        "models": {
            name: {
                "model": "runs/bash",  # as given
                "folder": "runs/bash/checkpoint-8",  # what was loaded
                "fingerprint": "…",  # of its weights; an adapter's includes its base's
                "figures": {suite: {figure: Figure.as_dict()}},
                "usage": {"generated_tokens": 0, "generations": 0, "kept_generations": 0, "seconds": 0.0, "judge": {…}},
            }
        },
        "differences": {name: {suite: {figure: Figure.as_dict()}}},  # to the first model, prompt by prompt
        "settings": EvaluationOptions.as_dict(),
        "versions": {"trl-exbias": "…", …},
    }
    ```

    Raises:
        ValueError: for data, models or options that cannot be used; says what to do.
        ImportError: if a suite needs a package that is not installed; names the extra.
    """
    raise NotImplementedError
