"""Own responses by the engine that stands in the trainer, against transformers' `generate` in batches of the same rows."""

import torch

from trl_exbias.rollouts import SamplingOptions, TransformersEngine

from .common import alternate, chat_rows, load_model, report


def main(rows: int = 64, batch: int = 16, max_new_tokens: int = 256, repeats: int = 1) -> None:
    """Greedy, so that both write the same tokens; batches of the longest prompts first, as the engine makes them."""
    model, tokenizer = load_model()
    model.eval()
    prompts, _, source = chat_rows(rows, tokenizer)
    stops = (tokenizer.eos_token_id,)
    options = SamplingOptions(temperature=0, max_new_tokens=max_new_tokens, stop_token_ids=stops)
    longest = max(map(len, prompts)) + max_new_tokens
    engine = TransformersEngine(model, tokenizer.pad_token_id, max_batch_tokens=batch * longest)
    order = sorted(range(rows), key=lambda row: -len(prompts[row]))
    found: dict[str, list[list[int]]] = {}

    def ours() -> None:
        found["sample"] = engine.sample(prompts, options)

    def theirs() -> None:
        out: list[list[int]] = [[] for _ in prompts]
        for start in range(0, rows, batch):
            part = order[start : start + batch]
            width = max(len(prompts[row]) for row in part)
            ids = torch.full((len(part), width), tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(part):
                ids[i, width - len(prompts[row]) :] = torch.tensor(prompts[row])
                mask[i, width - len(prompts[row]) :] = 1
            with torch.no_grad():
                drawn = model.generate(
                    ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stops)
                )
            for row, tokens in zip(part, drawn[:, width:].tolist(), strict=True):
                end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
                out[row] = tokens[:end]
        found["generate"] = out

    seconds = alternate({"sample": ours, "generate": theirs}, repeats)
    same = sum(a == b for a, b in zip(found["sample"], found["generate"], strict=True))
    report(
        f"sample ÷ generate, {rows} prompts of {source}, {max_new_tokens} tokens, batches of {batch}",
        seconds["sample"] / seconds["generate"],
        "≤ 0.8",
        f"{seconds['sample']:.0f} s ÷ {seconds['generate']:.0f} s, {same} of {rows} rows equal",
    )


if __name__ == "__main__":
    main()
