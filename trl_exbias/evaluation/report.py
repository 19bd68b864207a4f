"""What a measurement says, as a table and in plain words."""

from dataclasses import asdict, dataclass
from typing import Any

from .exposure_bias import Estimate, ExposureBias
from .perplexity import Perplexity
from .tables import aligned


NOTES = """\
teacher-forced  Cross-entropy of the true next token after true tokens. Says how well the model predicts, not how it continues
                from its own words.
free-running    Cross-entropy of the true token after the model's own tokens. Compares models on the same data. A model
                lowers it by hedging on contexts that look like its own: read it together with the teacher-forced figure.
gap             Free-running minus teacher-forced. 0 at step 1. Not an absolute measure of exposure bias: even the true
                distribution has a positive gap, because what it samples is not the one text that was written."""
TEACHER_NOTES = """\
excess error    KL(teacher || model) on prefixes that the model wrote, minus the same on true ones: exposure bias proper, as
                far as the teacher stands for the truth. 0: the model imitates as well on its own states as on the data's. A
                negative value means that its own states are easier for it than the data's; within the interval it is noise.
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
    """A line for each model: means with 95 % intervals, nats per token."""
    names = ["teacher_forced", "free_running", "gap"]
    reports = {model: m.exposure_bias for model, m in measurements.items()}
    if any(report.excess_error is not None for report in reports.values()):
        names += ["excess_error", "accumulated_excess_error"]
    titles = {"accumulated_excess_error": "accumulated (%)"}
    heads = ["model", "perplexity", "bits/byte", *(titles.get(name, name.replace("_", " ")) for name in names)]
    lines = [heads]
    for model, measurement in measurements.items():
        ppl = measurement.perplexity
        cells = [model, "–", "–"]
        if ppl is not None:
            cells[1:] = [f"{ppl.perplexity:.2f}", f"{ppl.bits / measurement.bytes_per_token:.3f}"]
        cells += [_estimate(measurement.exposure_bias.totals.get(name)) for name in names]
        lines.append(cells)
    return aligned(lines)


def notes(with_teacher: bool) -> str:
    """What each figure can and cannot show."""
    return f"{NOTES}\n{TEACHER_NOTES}" if with_teacher else NOTES


def _estimate(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
