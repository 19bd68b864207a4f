"""Generative perplexity: how plausible another language model finds the responses, next to the references."""

from pathlib import Path

from ..figures import Figure
from ..generations import Generation
from ..measuring_models import identity, measuring_folder
from ..options import EvaluationOptions
from ..subject import Sampling
from ..work import Work
from .likelihood import exponential
from .suite import Suite


def _figures(work: Work) -> dict[str, Figure]:
    from transformers import AutoTokenizer

    from ..generative_perplexity import generative_cross_entropy
    from ..loading import load_model

    _ = work.repetitions  # before another model takes memory
    options, folder = work.options, _check(work.options)
    model = load_model(folder, options)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    follows = work.rows.is_text or (isinstance(work.rows.dataset[0]["prompt"], str) and not _is_conversation(work))
    prompts = {item.id: item.prompt if follows else f"{item.prompt}\n\n" for item in work.items}
    references = {item.id: item.references[0] for item in work.items}
    settings = {"scorer": identity(folder, options.perplexity_model)}

    def measure(responses: dict[str, Generation]) -> dict[str, Figure]:
        texts = {key: responses[key].text for key in prompts}
        return generative_cross_entropy(
            model, tokenizer, prompts, texts, references, work.subject.batch_tokens, settings
        )

    found = work.over_repetitions(measure)
    return {"generative_perplexity": exponential(found["generative_cross_entropy"], "generative_perplexity"), **found}


def _is_conversation(work: Work) -> bool:
    return bool(work.settings()["as_conversation"])


def _check(options: EvaluationOptions) -> Path:
    return measuring_folder(options.perplexity_model, "perplexity_model")


SUITE = Suite(
    name="generative_perplexity",
    figures=_figures,
    sampling=Sampling(temperature=1.0),
    check=_check,
)
