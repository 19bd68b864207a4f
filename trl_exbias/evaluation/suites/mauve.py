"""MAUVE of the responses against the references (Pillutla et al., 2021)."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..figures import Figure
from ..generations import Generation
from ..mauve import MAX_TEXT_TOKENS, MIN_PROMPTS
from ..measuring_models import identity, measuring_folder
from ..options import EvaluationOptions
from ..subject import Sampling
from ..work import Work
from .suite import Suite


if TYPE_CHECKING:
    import numpy as np


def _figures(work: Work) -> dict[str, Figure]:
    from transformers import AutoModel, AutoTokenizer

    from ..loading import device_of
    from ..mauve import mauve
    from ..measuring_models import text_features

    _ = work.repetitions  # before another model takes memory
    options, folder = work.options, _check(work.options)
    kwargs = {"trust_remote_code": options.trust_remote_code}
    model = AutoModel.from_pretrained(folder, dtype=options.dtype, **kwargs).to(device_of(options)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, **kwargs)
    settings = {"features": identity(folder, options.mauve_model)}
    ids = [item.id for item in work.items]

    def features(texts: list[str]) -> "np.ndarray":
        return text_features(model, tokenizer, texts, MAX_TEXT_TOKENS, work.subject.batch_tokens)

    references = features([item.references[0] for item in work.items])

    def measure(responses: dict[str, Generation]) -> dict[str, Figure]:
        found = mauve(ids, references, features([responses[key].text for key in ids]), settings=settings)
        return {"mauve": found}

    return work.over_repetitions(measure)


def _check(options: EvaluationOptions) -> Path:
    return measuring_folder(options.mauve_model, "mauve_model")


SUITE = Suite(
    name="mauve",
    figures=_figures,
    # Greedy text is another distribution than the written one, however good the model is.
    sampling=Sampling(temperature=1.0),
    packages={"mauve": "mauve", "faiss": "mauve", "sklearn": "mauve"},
    check=_check,
    min_prompts=MIN_PROMPTS,
)
