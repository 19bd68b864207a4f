"""What the demo measures of a model on held-out word problems, before and after."""

from dataclasses import dataclass

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..chat.stop_tokens import stop_token_ids
from ..core.likelihood import label_nll
from ..evaluation.prompted import prompt_and_response
from ..rollouts import SamplingOptions, TransformersEngine
from .word_problems import is_correct, right_calculations


@dataclass(frozen=True)
class Measurement:
    """
    Args:
        teacher_forced (`float`): Cross-entropy of the written answers after themselves, in nats per token.
        calculations (`float`): Right calculations in a greedy answer, of two.
        accuracy (`float`): Share of greedy answers whose last number is right.
    """

    teacher_forced: float
    calculations: float
    accuracy: float


def measure(model: nn.Module, tokenizer: PreTrainedTokenizerBase, problems: Dataset) -> Measurement:
    """Measures a model on word problems."""
    prompts, gold = zip(*(prompt_and_response(row, tokenizer) for row in problems), strict=True)
    greedy = SamplingOptions(
        temperature=0, max_new_tokens=64, stop_token_ids=stop_token_ids(tokenizer, model.generation_config, None)
    )
    responses = TransformersEngine(model, tokenizer.pad_token_id).sample(prompts, greedy)
    answers = tokenizer.batch_decode(responses, skip_special_tokens=True)
    nll = [value for row in label_nll(model, prompts, gold, gold, tokenizer.pad_token_id) for value in row]
    solutions = [row["completion"][0]["content"] for row in problems]
    return Measurement(
        teacher_forced=sum(nll) / len(nll),
        calculations=sum(map(right_calculations, answers, solutions)) / len(answers),
        accuracy=sum(is_correct(answer, row["answer"]) for answer, row in zip(answers, problems, strict=True))
        / len(answers),
    )
