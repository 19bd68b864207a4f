"""`sample`, `label` and `mix` of a policy: tokens a second, and sweeps against decoding the same rows in one batch."""

from collections.abc import Iterator
from typing import Any

import torch

from trl_exbias.core.modeling import inference
from trl_exbias.rollouts import SamplingOptions, TransformersEngine
from trl_exbias.rollouts.local.scripts import Mixing
from trl_exbias.rollouts.noise import uniform

from .common import seconds_of


#: Whether there is no more to come of a shape's figures.
COMPLETE = "complete"


def measure_rollouts(
    model: torch.nn.Module, vocab_size: int, prompt: int, response: int, rows: int, thorough: bool, beta: float = 0.2
) -> Iterator[dict[str, Any]]:
    """
    Tokens a second of each verb on random prompts; yields what there is after each.

    `mix_own`: gold was drawn from the policy itself, as good a guess as a well-trained model's data are. With `thorough`,
    decoding the same rows token by token, too, and `mix_random`: gold has nothing to do with the policy, the worst case.
    """
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, vocab_size, (rows, prompt), generator=generator).tolist()
    engine = TransformersEngine(model, pad_token_id=1, max_batch_tokens=rows * (prompt + response + 1))
    options = SamplingOptions(seed=0, max_new_tokens=response)
    drawn: dict[str, list[list[int]]] = {}

    def sample() -> None:
        drawn["own"] = engine.sample(prompts, SamplingOptions(seed=1, max_new_tokens=response))

    engine.sample(prompts[:2], SamplingOptions(max_new_tokens=2))
    seconds = seconds_of(sample, warm_ups=0)
    figures: dict[str, Any] = {"rows": rows, "prompt": prompt, "response": response}
    figures["sample"] = {"seconds": seconds, "tokens_per_second": rows * response / seconds}
    yield figures
    seconds = seconds_of(lambda: engine.label(prompts, drawn["own"]))
    figures["label"] = {"seconds": seconds, "tokens_per_second": rows * (prompt + response) / seconds}
    masks = [(uniform(0, [row], response)[0] < beta).tolist() for row in range(rows)]
    figures["mix_own"] = _mix(engine, prompts, drawn["own"], masks, options, decodes=thorough)
    yield figures
    if thorough:
        drawn["random"] = torch.randint(3, vocab_size, (rows, response), generator=generator).tolist()
        figures["mix_random"] = _mix(engine, prompts, drawn["random"], masks, options, decodes=False)
    yield {**figures, COMPLETE: True}


def _mix(engine, prompts, gold, masks, options, decodes: bool) -> dict[str, Any]:
    """Sweeps, and, where asked for, the same rows token by token, all in one batch."""
    found: dict[str, list[list[int]]] = {}

    def sweeps() -> None:
        found["sweeps"] = engine.mix(prompts, gold, masks, options)

    def decoding() -> None:
        found["decoding"] = decode(engine, prompts, gold, masks, options)

    seconds = seconds_of(sweeps, warm_ups=0)
    drawn = sum(map(sum, masks))
    changed = sum(
        a != b
        for row, reference in zip(found["sweeps"], gold, strict=True)
        for a, b in zip(row, reference, strict=True)
    )
    figures = {
        "seconds": seconds,
        "tokens_per_second": sum(map(len, gold)) / seconds,
        "changed_rate": changed / drawn,
    }
    if decodes:
        figures["decoding_seconds"] = seconds_of(decoding, warm_ups=0)
        figures["times_as_fast"] = figures["decoding_seconds"] / seconds
        same = [a == b for a, b in zip(found["sweeps"], found["decoding"], strict=True)]
        figures["equal_rows"] = sum(same) / len(same)  # in half precision, ties fall either way
    return figures


def decode(engine, prompts, gold, masks, options) -> list[list[int]]:
    """`mix` token by token with a KV cache, all rows in one batch."""
    sampled = [[j for j, is_drawn in enumerate(mask) if is_drawn] for mask in masks]
    out = [list(row) for row in gold]
    rows = [row for row, positions in enumerate(sampled) if positions]
    engine._reported = set()
    with inference(engine.model), engine.autocast():
        engine._decode(rows, prompts, Mixing(gold, sampled), options, list(range(len(prompts))), out)
    return out
