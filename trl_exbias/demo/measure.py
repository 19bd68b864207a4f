"""What the demo measures of a model on held-out word problems, before and after."""

from dataclasses import dataclass

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..chat.stop_tokens import stop_token_ids
from ..evaluation.prompted import prompt_and_response
from ..evaluation.responses import ResponseCrossEntropy, response_cross_entropy
from ..rollouts import SamplingOptions, TransformersEngine
from .word_problems import is_correct


@dataclass(frozen=True)
class Measurement:
    """Cross-entropies, and the share of greedy answers whose last number is right."""

    cross_entropy: ResponseCrossEntropy
    accuracy: float


def measure(model: nn.Module, tokenizer: PreTrainedTokenizerBase, problems: Dataset, seed: int) -> Measurement:
    """Measures a model on word problems; `seed` draws its free-running responses."""
    prompts, gold = zip(*(prompt_and_response(row, tokenizer) for row in problems), strict=True)
    greedy = SamplingOptions(
        temperature=0, max_new_tokens=64, stop_token_ids=stop_token_ids(tokenizer, model.generation_config, None)
    )
    responses = TransformersEngine(model, tokenizer.pad_token_id).sample(prompts, greedy)
    answers = tokenizer.batch_decode(responses, skip_special_tokens=True)
    correct = [is_correct(answer, row["answer"]) for answer, row in zip(answers, problems, strict=True)]
    return Measurement(
        response_cross_entropy(model, prompts, gold, tokenizer.pad_token_id, seed), sum(correct) / len(correct)
    )
