"""Cross-entropies of gold responses: teacher-forced, and free-running at gold length."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..core.likelihood import label_nll
from ..core.token_ids import TokenIds
from ..rollouts import SamplingOptions, TransformersEngine


@dataclass(frozen=True)
class ResponseCrossEntropy:
    """
    Token means over all responses, in nats.

    Args:
        teacher_forced (`float`): Cross-entropy of the gold response given gold.
        free_running (`float`): Cross-entropy of the gold response given the model's own tokens, one sample a row.
        num_tokens (`int`): Label tokens in each mean.
    """

    teacher_forced: float
    free_running: float
    num_tokens: int


def response_cross_entropy(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    responses: Sequence[TokenIds],
    pad_token_id: int,
    seed: int = 0,
) -> ResponseCrossEntropy:
    """
    Measures a model on held-out prompts and gold responses.

    Free-running, every position of the response is the model's own (temperature 1), as many as gold has, and gold is
    the label at each: Pozzi 2025 Eq. 12 with the prompt as context and the whole response as horizon.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Left as it was found.
        prompts, responses (`Sequence[Sequence[int]]`): Token ids, one entry a row.
        seed (`int`): Draws the free-running responses.
    """
    engine = TransformersEngine(model, pad_token_id)
    own = engine.mix(prompts, responses, [[True] * len(row) for row in responses], SamplingOptions(seed=seed))
    means: list[float] = []
    for along in (responses, own):
        nll = [value for row in label_nll(model, prompts, along, responses, pad_token_id) for value in row]
        means.append(sum(nll) / len(nll))
    teacher_forced, free_running = means
    return ResponseCrossEntropy(teacher_forced, free_running, num_tokens=sum(map(len, responses)))
