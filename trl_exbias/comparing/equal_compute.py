"""How long runs must be to consume the same."""

import math
from dataclasses import dataclass, replace

from ..core.errors import UsageError
from .compute import Compute
from .forecast import Forecast


@dataclass(frozen=True)
class Price:
    """What a token of each sort costs: 1 where tokens are counted; its seconds where seconds are."""

    trained: float = 1.0
    generated: float = 1.0
    teacher: float = 1.0

    @classmethod
    def in_seconds(cls, found: Compute) -> "Price":
        """
        Seconds a token, as a finished run took them. What it never did costs what training does.

        Raises:
            ValueError: if it has logged no seconds of training.
        """
        training = sum(found.seconds.get(phase, 0.0) for phase in ("sft", "joint"))
        other = found.phase_seconds - training
        if not training or not found.trained:
            raise UsageError("the run has logged no seconds of training (`seconds/sft`, `seconds/joint`).")
        trained = training / found.trained
        # Drawing and labelling are timed as one phase.
        rolled_out = other / (found.generated + found.teacher) if found.generated + found.teacher and other else trained
        return cls(trained, rolled_out, rolled_out)

    def of(self, forecast: Forecast) -> float:
        """What a run will cost."""
        return self.trained * forecast.trained + self.generated * forecast.generated + self.teacher * forecast.teacher


def spent(found: Compute, equal: str) -> float:
    """What a run has consumed of what is to be equal: `tokens` or `seconds`."""
    return found.phase_seconds if equal == "seconds" else float(found.tokens)


def calibrated(forecast: Forecast, planned: Forecast, measured_sft_tokens: float) -> Forecast:
    """
    A forecast corrected by what another run on the same data was found to train on in its SFT phase.

    Args:
        forecast ([`Forecast`]): To correct: `exbias check` looks at the first rows alone.
        planned ([`Forecast`]): The forecast of the run that was measured.
        measured_sft_tokens (`float`): Tokens of its SFT phase; 0 where it has none.
    """
    if not planned.sft_tokens or not measured_sft_tokens:
        return forecast
    factor = measured_sft_tokens / planned.sft_tokens
    tokens = ("trained", "generated", "teacher", "last_tokens", "sft_tokens")
    return replace(forecast, **{name: factor * getattr(forecast, name) for name in tokens})


def answered(forecast: Forecast, planned: Forecast, measured: Compute) -> Forecast:
    """
    A forecast with answers as long as another run was found to give, where it had the longest possible.

    Args:
        forecast ([`Forecast`]): The forecast of a method that answers freely (RAC, SPIN).
        planned ([`Forecast`]), measured ([`Compute`]): Those of a run of such a method.
    """
    if not planned.generated or not forecast.generated:
        return forecast
    # Each token that is not said is not generated, not trained on, and not read for labels.
    less = forecast.generated * (1 - measured.generated / planned.generated)
    kept = {name: max(0.0, getattr(forecast, name) - less) for name in ("trained", "generated", "teacher")}
    return replace(forecast, **kept, last_tokens=max(1.0, forecast.last_tokens - less))


def steps_for(budget: float, forecast: Forecast, price: Price) -> int:
    """
    Optimizer updates with which a run consumes `budget`: the last phase is made longer or shorter.

    Rollouts stand as they are, so a run cannot cost less than they and the phases before the last do; one update of the
    last stays.
    """
    a_step = price.trained * forecast.last_tokens / forecast.last_steps
    steps = forecast.steps + (budget - price.of(forecast)) / a_step
    return max(forecast.steps - forecast.last_steps + 1, math.floor(steps + 0.5))
