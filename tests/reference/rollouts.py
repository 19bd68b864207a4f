"""Rollouts straight from the equations: one token at a time, one sequence at a time, a whole forward for each token."""

import torch

from trl_exbias.rollouts import SamplingOptions
from trl_exbias.rollouts.noise import add_gumbel_


@torch.no_grad()
def noisy_scores(model, prefix: list[int], options: SamplingOptions, example_id: int, position: int) -> torch.Tensor:
    """What the next token is the argmax of: penalised log p(. | prefix) with the noise of (seed, example, position), except for a constant."""
    logits = model(torch.tensor([prefix], device=model.device)).logits[:, -1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    for token in set(prefix) if options.repetition_penalty != 1 else ():
        scaled = logits[0, token] / options.repetition_penalty, logits[0, token] * options.repetition_penalty
        logits[0, token] = scaled[0] if logits[0, token] > 0 else scaled[1]
    if options.temperature == 0:
        return logits[0]
    return add_gumbel_(logits / options.temperature, options.seed, [example_id], [position])[0]


def next_token(model, prefix: list[int], options: SamplingOptions, example_id: int, position: int) -> int:
    """Draws from p(. | prefix)."""
    return int(noisy_scores(model, prefix, options, example_id, position).argmax())


def sample(model, prompt: list[int], options: SamplingOptions, example_id: int, tokenizer=None) -> list[int]:
    """Cen 2024 Eq. 2: z_k ~ p(. | x, z_<k) until a stop token, a stop string in the text, or the limit."""
    strings = () if options.stop_strings is None else options.stop_strings.strings
    response: list[int] = []
    while len(response) < options.max_new_tokens:
        response.append(next_token(model, prompt + response, options, example_id, len(response)))
        if response[-1] in options.stop_token_ids or any(string in tokenizer.decode(response) for string in strings):
            break
    return response


def mix(model, prompt: list[int], reference: list[int], mask: list[bool], options, example_id: int) -> list[int]:
    """Cen 2024 Eq. 4: left to right, z_j ~ p(. | x, mixed prefix) where the mask is true, gold elsewhere."""
    mixed: list[int] = []
    for j, (gold, drawn) in enumerate(zip(reference, mask, strict=True)):
        mixed.append(next_token(model, prompt + mixed, options, example_id, j) if drawn else gold)
    return mixed


def label(model, context: list[int], continuation: list[int]) -> list[int]:
    """Cen 2024 Eq. 6: the argmax after f(x, y) and z_<j, for every j."""
    greedy = SamplingOptions(temperature=0.0)
    return [next_token(model, context + continuation[:j], greedy, 0, j) for j in range(len(continuation))]
