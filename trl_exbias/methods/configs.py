"""The methods' configurations, apart from the trainers: `exbias check` reads a recipe without importing TRL's."""

from dataclasses import dataclass, field

from ..loop.config import IterativeSFTConfig, _number
from .rac_template import CorrectionTemplate


@dataclass
class BASHConfig(IterativeSFTConfig):
    """
    Configuration of the [`BASHTrainer`]: [`IterativeSFTConfig`] and the mixture coefficient.

    Defaults are the paper's (Cen 2024, Table 5): β = 0.2, one iteration, one epoch.
    """

    _rollout_settings = (*IterativeSFTConfig._rollout_settings, "beta")

    beta: float = field(
        default=0.2,
        metadata={
            "help": "Probability that a response position is drawn from the policy instead of taken from gold. The "
            "paper uses 0.2 and advises keeping it small (Remark 2). 0 is plain SFT; 1 is free running at gold length."
        },
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if not 0 <= _number(self.beta) <= 1:
            found.append(f"`beta` must be a probability in [0, 1], got {self.beta!r}.")
        return found

    @property
    def is_plain_sft(self) -> bool:
        return super().is_plain_sft or (self.beta == 0 and self.rollout_turns == "last")


@dataclass
class RACConfig(IterativeSFTConfig):
    """Configuration of the [`RACTrainer`]: [`IterativeSFTConfig`], the correction template and the response limit."""

    _rollout_settings = (*IterativeSFTConfig._rollout_settings, "correction_template", "max_new_tokens")

    correction_template: str = field(
        default="qa",
        metadata={
            "help": "How the model is shown the reference answer: 'qa' or 'summarization' (the paper's, App. A.1), the "
            "path of a .jinja file, or the template itself; it must mention {{ prompt }} and {{ reference }}."
        },
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens after which a rollout is cut off."})

    def problems(self) -> list[str]:
        found = super().problems()
        if not _number(self.max_new_tokens) >= 1:
            found.append(f"`max_new_tokens` must be at least 1, got {self.max_new_tokens!r}.")
        try:
            CorrectionTemplate(self.correction_template)
        except ValueError as error:
            found.append(str(error))
        return found


@dataclass
class SPINConfig(IterativeSFTConfig):
    """
    Configuration of the [`SPINTrainer`]: [`IterativeSFTConfig`], λ and the response limit.

    `sft_weight` defaults to 0, as in the paper: SPIN's loss alone.
    """

    _rollout_settings = (*IterativeSFTConfig._rollout_settings, "max_new_tokens")

    sft_weight: float = field(default=0.0, metadata={"help": "Weight of the gold (SFT) term next to SPIN's loss."})
    spin_lambda: float = field(
        default=0.1,
        metadata={"help": "λ: how strongly the policy is held to the iteration's starting policy. Above 0."},
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens after which a rollout is cut off."})

    def problems(self) -> list[str]:
        found = super().problems()
        if not _number(self.spin_lambda) > 0:
            found.append(f"`spin_lambda` must be above 0, got {self.spin_lambda!r}.")
        if not _number(self.max_new_tokens) >= 1:
            found.append(f"`max_new_tokens` must be at least 1, got {self.max_new_tokens!r}.")
        if self.loss_type == "dft":
            found.append("`loss_type='dft'` weights token losses, of which SPIN has none. Leave it out.")
        return found


@dataclass
class ScheduledSamplingConfig(BASHConfig):
    """Configuration of the [`ScheduledSamplingTrainer`]: [`BASHConfig`], whose rollout engine must be the model itself."""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.rollout_engine != "transformers":
            found.append(
                "`rollout_engine` must be 'transformers': the weights change at every step, and no other engine has them. "
                "BASH samples offline, with either engine."
            )
        return found
