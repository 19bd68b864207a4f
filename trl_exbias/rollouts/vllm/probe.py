"""Whether a server serves the weights that it was given."""

from collections.abc import Sequence
from dataclasses import dataclass

from .process import RolloutEngineError


@dataclass(frozen=True)
class WeightProbe:
    """
    What the policy says of a few tokens. The served weights must say the same before anything of theirs is used.

    Catches what a checksum of files cannot: weights that were loaded and are not used (an LM head packed before the tied
    embedding changed, an adapter that was ignored).

    Args:
        tokens (`list[int]`): A sequence.
        log_probs (`list[float]`): The policy's log-probability (nats) of each of its tokens but the first.
        tolerance (`float`): Mean absolute difference in nats that rounding explains.
    """

    tokens: list[int]
    log_probs: list[float]
    tolerance: float

    def check(self, served: Sequence[float]) -> None:
        """
        Raises:
            RolloutEngineError: if the served weights' log-probabilities of the tokens are others.
        """
        pairs = list(zip(self.log_probs, served, strict=True))
        difference = sum(abs(own - other) for own, other in pairs) / len(pairs)
        # Not `>`: weights that give NaN are wrong too.
        if not difference <= self.tolerance:
            raise RolloutEngineError(
                f"vLLM does not serve the policy's weights: log-probabilities of {len(pairs)} tokens are {difference:.3g} "
                f"nats apart on average, where rounding explains {self.tolerance:g}. Nothing that it rolled out was kept. "
                "Roll out with `rollout_engine='transformers'`."
            )
