"""What the demo measures of a model on held-out word problems, before and after."""

from dataclasses import dataclass

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data import conversation_prompt_ids, stop_token_ids
from ..evaluation.likelihood import label_nll
from ..rollouts import SamplingOptions, TransformersEngine
from .word_problems import is_correct


@dataclass(frozen=True)
class Measurement:
    """
    Means over the held-out rows.

    Args:
        teacher_forced (`float`): Cross-entropy of the gold response given gold, nats per token.
        free_running (`float`): Cross-entropy of the gold response given the model's own tokens, nats per token.
        accuracy (`float`): Share of greedy answers whose last number is right.
    """

    teacher_forced: float
    free_running: float
    accuracy: float


def measure(model: nn.Module, tokenizer: PreTrainedTokenizerBase, problems: Dataset, seed: int) -> Measurement:
    """Measures a model on word problems; `seed` draws its free-running responses."""
    engine = TransformersEngine(model, pad_token_id=tokenizer.pad_token_id)
    prompts = [conversation_prompt_ids(tokenizer, row["prompt"], {}, None) for row in problems]
    gold = [
        tokenizer(row["completion"][0]["content"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        for row in problems
    ]
    # Free running at gold length: every position is the model's own, and gold is the label at each.
    own = engine.mix(prompts, gold, [[True] * len(response) for response in gold], SamplingOptions(seed=seed))
    nll = {
        name: [x for row in label_nll(model, prompts, along, gold, tokenizer.pad_token_id) for x in row]
        for name, along in (("teacher_forced", gold), ("free_running", own))
    }
    greedy = SamplingOptions(
        temperature=0, max_new_tokens=64, stop_token_ids=stop_token_ids(tokenizer, model.generation_config, None)
    )
    answers = tokenizer.batch_decode(engine.sample(prompts, greedy), skip_special_tokens=True)
    correct = [is_correct(answer, row["answer"]) for answer, row in zip(answers, problems, strict=True)]
    means = {name: sum(values) / len(values) for name, values in nll.items()}
    return Measurement(**means, accuracy=sum(correct) / len(correct))
