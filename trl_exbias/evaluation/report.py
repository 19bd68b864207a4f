"""What a measurement says, as a table and in plain words."""

from dataclasses import asdict, dataclass
from typing import Any

from .exposure_bias import Estimate, ExposureBias
from .perplexity import Perplexity
from .tables import aligned


NOTES = """\
teacher-forced  Cross-entropy of the true next token after true tokens. Says how well the model predicts, not how it continues
                its own words.
free-running    Cross-entropy of the true token after the model's own tokens. It falls where a model hedges on contexts that
                look like its own, also where nothing is cured: it cannot show a cure.
gap             Free-running minus teacher-forced. 0 at step 1. Even the true distribution has a positive gap, because what it
                samples is not the one text that was written."""
TEACHER_NOTES = """\
KL, own states  KL(teacher || model) on prefixes that the model wrote: how far the model is, where it goes by itself, from what
                the teacher would write there. This is the figure that a cure lowers, as far as the teacher stands for the
                truth; a teacher that was trained on the same text alone continues mistakes.
KL, true states The same on true prefixes.
excess          The first minus the second: exposure bias proper. 0: the model imitates as well on its own states as on the
                data's. Negative: its own states are easier for it; within the interval it is noise.
accumulated     The excess, summed over the horizon, in percent of the error on true prefixes (ExAccErr)."""


@dataclass(frozen=True)
class Measurement:
    """
    One model on one data set.

    Args:
        exposure_bias ([`ExposureBias`]): Over the horizon.
        perplexity ([`Perplexity`], *optional*): With a sliding context; `None` where the data have no documents.
        bytes_per_token (`float`): Bytes a token of the scored tokens' text.
    """

    exposure_bias: ExposureBias
    perplexity: Perplexity | None
    bytes_per_token: float

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON, in nats, bits and bits per byte."""
        found: dict[str, Any] = {"exposure_bias": self.exposure_bias.as_dict(), "bytes_per_token": self.bytes_per_token}
        if self.perplexity is not None:
            found["perplexity"] = {
                **asdict(self.perplexity),
                "bits": self.perplexity.bits,
                "perplexity": self.perplexity.perplexity,
                "bits_per_byte": self.perplexity.bits / self.bytes_per_token,
            }
        return found


def table(measurements: dict[str, Measurement]) -> str:
    """A line for each model: means with 95 % intervals, nats per token. With a teacher, what it says comes first."""
    lines = [["model", "perplexity", "bits/byte", "teacher-forced", "free-running", "gap"]]
    for model, measurement in measurements.items():
        ppl = measurement.perplexity
        cells = [model, "–", "–"]
        if ppl is not None:
            cells[1:] = [f"{ppl.perplexity:.2f}", f"{ppl.bits / measurement.bytes_per_token:.3f}"]
        lines.append([*cells, *_estimates(measurement, ("teacher_forced", "free_running", "gap"))])
    return "\n\n".join(filter(None, (_teacher_table(measurements), aligned(lines))))


def _teacher_table(measurements: dict[str, Measurement]) -> str:
    if all(measurement.exposure_bias.kl_own is None for measurement in measurements.values()):
        return ""
    lines = [["model", "KL, own states", "KL, true states", "excess", "accumulated (%)"]]
    names = ("kl_own", "kl_gold", "excess_error", "accumulated_excess_error")
    lines += [[model, *_estimates(measurement, names)] for model, measurement in measurements.items()]
    return aligned(lines)


def notes(with_teacher: bool) -> str:
    """What each figure can and cannot show."""
    return f"{TEACHER_NOTES}\n{NOTES}" if with_teacher else NOTES


def _estimates(measurement: Measurement, names: tuple[str, ...]) -> list[str]:
    return [_estimate(measurement.exposure_bias.totals.get(name)) for name in names]


def _estimate(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
