"""Completions to show side by side: what the evaluation has kept, by model and prompt."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .content import Sample


GENERATIONS = "generations"


def read_samples(folder: Path, models: Mapping[str, Mapping[str, Any]], number: int = 4) -> tuple[Sample, ...]:
    """
    The first responses of all models to some prompts that they share.

    Args:
        folder (`Path`): The folder of kept generations.
        models (`Mapping[str, Mapping]`): Records of `evaluation.json` by the model's name: `fingerprint` and `folder`.
        number (`int`, *optional*, defaults to `4`): Prompts, taken in the order of their digests: not by anyone's choice.

    Returns:
        `tuple[Sample, ...]`: Empty where nothing was generated.
    """
    by_settings: dict[str, dict[str, dict[str, dict]]] = defaultdict(dict)
    for name, record in models.items():
        for path in sorted(folder.glob(f"{record['fingerprint'][:16]}/*.jsonl")):
            header, *lines = path.read_text(encoding="utf-8").splitlines()
            found = [json.loads(line) for line in lines]
            first = {one["prompt"]: one for one in found if one["number"] == 0}
            by_settings[json.dumps(json.loads(header)["settings"], sort_keys=True)][name] = first
    shared = [
        (sorted(set.intersection(*map(set, own.values()))), own)
        for own in by_settings.values()
        if len(own) == len(models)
    ]
    prompts, responses = max(shared, key=lambda pair: len(pair[0]), default=([], {}))
    decode = _decoder(models)
    chosen = prompts[:number]
    return tuple(
        Sample(
            decode(responses[next(iter(models))][prompt]["prompt_ids"]),
            {n: responses[n][prompt]["text"] for n in models},
        )
        for prompt in chosen
    )


def _decoder(models: Mapping[str, Mapping[str, Any]]) -> Callable[..., Any]:
    """The text of token ids, by the first model's tokenizer."""

    def decode(ids: list[int]) -> str:
        from tokenizers import Tokenizer

        folder = Path(next(iter(models.values()))["folder"])
        if (folder / "tokenizer.json").is_file():
            # Without `transformers`, which takes seconds to import.
            return Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids, skip_special_tokens=False)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder).decode(ids)

    return decode
