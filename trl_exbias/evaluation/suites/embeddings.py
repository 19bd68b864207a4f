"""How far the responses' embeddings are from the references' (003, Fig. 2)."""

from ..figures import Figure
from ..work import Work
from .suite import Suite


def _figures(work: Work) -> dict[str, Figure]:
    from ..embeddings import embedding_distance

    found = work.over_repetitions(
        lambda responses: {
            "embedding_distance": embedding_distance(
                {key: one.text for key, one in responses.items()}, work.references, model=work.options.embedding_model
            )
        }
    )
    return found


SUITE = Suite(name="embeddings", figures=_figures, packages={"sentence_transformers": "embeddings"})
