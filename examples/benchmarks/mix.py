"""`mix` by fixed-point sweeps against decoding the same rows token by token with a KV cache: the same tokens out."""

import time

from trl_exbias.core.modeling import inference
from trl_exbias.rollouts import SamplingOptions, TransformersEngine
from trl_exbias.rollouts.local.scripts import Mixing
from trl_exbias.rollouts.noise import uniform

from .common import alternate, chat_rows, load_model, report


def masks_of(responses: list[list[int]], beta: float) -> list[list[bool]]:
    """Positions to draw: each with probability β."""
    return [(uniform(0, [i], len(row))[0] < beta).tolist() for i, row in enumerate(responses)]


def decode(engine, prompts, responses, masks, groups: list[list[int]]) -> list[list[int]]:
    """Mixes token by token with a KV cache, the rows of a group in one batch."""
    sampled = [[j for j, drawn in enumerate(mask) if drawn] for mask in masks]
    out = [list(row) for row in responses]
    engine._reported = set()
    with inference(engine.model):
        for group in groups:
            engine._decode(
                group, prompts, Mixing(responses, sampled), SamplingOptions(seed=0), list(range(len(prompts))), out
            )
    return out


def main(repeats: int = 1, num_rows: int = 32, beta: float = 0.2) -> None:
    """32 rows at β = 0.2: against one row at a time, and against all 32 in one batch."""
    model, tokenizer = load_model()
    prompts, responses, source = chat_rows(num_rows, tokenizer)
    masks = masks_of(responses, beta)
    options = SamplingOptions(seed=0)
    engine = TransformersEngine(model, tokenizer.pad_token_id)
    results = {}

    def sweeps():
        results["sweeps"] = engine.mix(prompts, responses, masks, options)

    def batched():
        results["batched"] = decode(engine, prompts, responses, masks, [list(range(num_rows))])

    def one_by_one():
        results["one by one"] = decode(engine, prompts, responses, masks, [[row] for row in range(num_rows)])

    seconds = alternate({"sweeps": sweeps, "batched": batched}, repeats)
    started = time.perf_counter()
    one_by_one()  # minutes, and nothing to warm up: once
    seconds["one by one"] = time.perf_counter() - started
    assert results["sweeps"] == results["batched"] == results["one by one"]
    tokens = sum(map(len, responses))
    what = f"{num_rows} rows of {source}, {sum(map(len, prompts)) / num_rows:.0f} + {tokens / num_rows:.0f} tokens"
    for other, goal in (("one by one", "≥ 4"), ("batched", "report")):
        report(
            f"mix, token-by-token KV-cache decoding ({other}) ÷ sweeps",
            seconds[other] / seconds["sweeps"],
            goal,
            f"{seconds[other]:.1f} s ÷ {seconds['sweeps']:.1f} s, {what}, same tokens",
        )


if __name__ == "__main__":
    main()
