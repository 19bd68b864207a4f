"""What the bench measures of a model: answers, recovery, and distances from the true distribution."""

from dataclasses import dataclass

import torch
from torch import nn

from ..core.modeling import inference
from ..rollouts import SamplingOptions, TransformersEngine
from .tasks import Rows, Task


@dataclass(frozen=True)
class Measure:
    """
    Args:
        key (`str`): The value's key in a result.
        title (`str`): The title of its column.
        higher_is_better (`bool`): Its direction.
        meaning (`str`): One sentence.
        is_evidence (`bool`): Whether it can show a cure.
    """

    key: str
    title: str
    higher_is_better: bool
    meaning: str
    is_evidence: bool = True


MEASURES = (
    Measure("final_greedy", "final answer, greedy", True, "Share of greedy responses whose last token is right."),
    Measure("final_sampled", "final answer, T = 1", True, "The same of sampled responses."),
    Measure("tokens_greedy", "tokens right, greedy", True, "Share of right tokens; on `walk`, of valid transitions."),
    Measure("tokens_sampled", "tokens right, T = 1", True, "The same of sampled responses."),
    Measure(
        "whole_greedy",
        "whole response, greedy",
        True,
        "Share of responses without any wrong token. With one right answer it depends on predictions after gold alone: a cost, "
        "never a cure.",
    ),
    Measure("whole_sampled", "whole response, T = 1", True, "The same of sampled responses."),
    Measure("recovery", "recovery, T = 1", True, "P(right | the token before was wrong)."),
    Measure(
        "kl_own",
        "KL on own states",
        False,
        "KL from the true distribution of the right next token, on sampled prefixes (nats).",
    ),
    Measure("kl_gold", "KL on gold states", False, "The same on gold prefixes."),
    Measure("teacher_forced", "teacher-forced CE", False, "Cross-entropy of gold after gold (nats a token)."),
    Measure(
        "free_running",
        "free-running CE",
        False,
        "Cross-entropy of gold after the model's own prefix. It falls also where nothing can be cured: no evidence.",
        is_evidence=False,
    ),
)


@torch.no_grad()
def measure(model: nn.Module, task: Task, rows: Rows, pad_token_id: int, seed: int = 0) -> dict[str, float | None]:
    """
    The values of [`MEASURES`] on held-out rows.

    `recovery` is `None` where no sampled token was wrong.
    """
    length = rows.responses.size(1)
    engine = TransformersEngine(model, pad_token_id)

    def responses(temperature: float) -> torch.Tensor:
        options = SamplingOptions(temperature=temperature, max_new_tokens=length, seed=seed)
        return torch.tensor(engine.sample(rows.prompts.tolist(), options))

    greedy, sampled = responses(0.0), responses(1.0)
    values: dict[str, float | None] = {}
    for name, own in (("greedy", greedy), ("sampled", sampled)):
        right = task.is_right(rows, own)
        values[f"final_{name}"] = right[:, -1].float().mean().item()
        values[f"tokens_{name}"] = right.float().mean().item()
        values[f"whole_{name}"] = right.all(1).float().mean().item()
    after_wrong = right[:, 1:][~right[:, :-1]]
    values["recovery"] = after_wrong.float().mean().item() if len(after_wrong) else None
    on_gold = _log_probs(model, rows.prompts, rows.responses)
    on_own = _log_probs(model, rows.prompts, sampled)
    gold = rows.responses.unsqueeze(2)
    values["kl_own"] = _kl(task.true_after_own(rows, sampled), on_own)
    values["kl_gold"] = _kl(task.true_after_gold(rows), on_gold)
    values["teacher_forced"] = -on_gold.gather(2, gold).mean().item()
    values["free_running"] = -on_own.gather(2, gold).mean().item()
    return values


def _log_probs(model: nn.Module, prompts: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
    """log p of every word at each position of the responses: `(N, R, V)`."""
    with inference(model):
        logits = model(input_ids=torch.cat([prompts, responses], 1)[:, :-1], use_cache=False).logits
    return logits[:, prompts.size(1) - 1 :].float().log_softmax(-1)


def _kl(true: torch.Tensor, log_probs: torch.Tensor) -> float:
    """Mean KL(p* ‖ p_θ) over positions, in nats; p* has no mass outside the answers' words."""
    entropy = -torch.xlogy(true, true).sum(-1)
    cross_entropy = -(true * log_probs[..., : true.size(-1)]).sum(-1)
    return (cross_entropy - entropy).mean().item()
