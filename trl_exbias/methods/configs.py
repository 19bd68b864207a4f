"""The methods' configurations, apart from the trainers: `exbias check` reads a recipe without importing TRL's."""

from dataclasses import dataclass, field
from typing import Any

from ..core.divergences import DIVERGENCES, FORWARD_KL, Divergence, divergence_problems
from ..core.gates import GATES, Gate, gate_problems
from ..loop.config import IterativeSFTConfig, _number
from .rac_template import CorrectionTemplate
from .verifiers import find_verifier


#: Whose distribution soft corrections are.
POLICY, BASE, AVERAGE = "policy", "base", "average"
SELF_TEACHERS = (POLICY, BASE, AVERAGE)
_GATE_SETTINGS = ("gate", "gate_epsilon", "gate_template")


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

    gate: str | None = field(
        default=None,
        metadata={
            "help": "Trust gold less where the policy, shown the reference, finds it unlikely after the policy's own tokens: 'threshold', "
            "min(1, q(gold) / `gate_epsilon`), or 'relative', q(gold) / max q. Default: gold counts whole.",
            "choices": list(GATES),
        },
    )
    gate_epsilon: float = field(
        default=0.1, metadata={"help": "Probability from which on `gate='threshold'` trusts gold whole."}
    )
    gate_template: str = field(
        default="qa",
        metadata={
            "help": "How `gate` shows the reference answer: as RAC's `correction_template`, 'qa', 'summarization', a .jinja file, or "
            "the template itself."
        },
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if not 0 <= _number(self.beta) <= 1:
            found.append(f"`beta` must be a probability in [0, 1], got {self.beta!r}.")
        if self.stop_strings is not None:
            found.append(
                "`stop_strings` ends responses of the policy's own; a mixed response is as long as gold. Leave it out."
            )
        found += gate_problems(self.gate, self.gate_epsilon)
        try:
            CorrectionTemplate(self.gate_template)
        except ValueError as error:
            found.append(str(error).replace("correction_template", "gate_template"))
        return found

    def rollout_settings(self) -> dict[str, Any]:
        found = super().rollout_settings()
        return found if self.gate is None else {**found, **{n: getattr(self, n) for n in _GATE_SETTINGS}}

    @property
    def label_gate(self) -> Gate | None:
        """How far gold is trusted after tokens of the policy's own."""
        return None if self.gate is None else Gate(self.gate, self.gate_epsilon)

    @property
    def is_plain_sft(self) -> bool:
        return super().is_plain_sft or (self.beta == 0 and self.rollout_turns == "last")


@dataclass
class RACConfig(IterativeSFTConfig):
    """
    Configuration of the [`RACTrainer`]: [`IterativeSFTConfig`], the correction template, the response limit, and soft corrections.
    """

    _rollout_settings = (*IterativeSFTConfig._rollout_settings, "correction_template", "max_new_tokens")

    correction_template: str = field(
        default="qa",
        metadata={
            "help": "How the model is shown the reference answer: 'qa' or 'summarization' (the paper's, App. A.1), the "
            "path of a .jinja file, or the template itself; it must mention {{ prompt }} and {{ reference }}."
        },
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens after which a rollout is cut off."})
    soft_labels: bool = field(
        default=False,
        metadata={
            "help": "Label every position of a rollout by the distribution of the model that was shown the reference, "
            "instead of by its most probable token where that is another."
        },
    )
    divergence: str = field(
        default=FORWARD_KL,
        metadata={
            "help": "What `soft_labels` minimise between labels q and policy p: 'forward_kl' KL(q‖p), 'reverse_kl' KL(p‖q), "
            "or 'jensen_shannon' (GKD's, with `jsd_beta`).",
            "choices": list(DIVERGENCES),
        },
    )
    jsd_beta: float = field(
        default=0.5, metadata={"help": "β of `divergence='jensen_shannon'`: the soft labels' share of the mixture."}
    )
    teacher_top_k: int | None = field(
        default=None,
        metadata={
            "help": "Keep the k most probable tokens of a soft label and the mass of the rest. Default: all tokens."
        },
    )
    self_teacher: str = field(
        default=POLICY,
        metadata={
            "help": "Whose distribution the soft labels are: the 'policy' that rolls out, the 'base' that training began "
            "with, or the exponential 'average' of the iterations' policies.",
            "choices": list(SELF_TEACHERS),
        },
    )
    self_teacher_decay: float = field(
        default=0.5, metadata={"help": "What `self_teacher='average'` keeps of the average before, in each iteration."}
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if not _number(self.max_new_tokens) >= 1:
            found.append(f"`max_new_tokens` must be at least 1, got {self.max_new_tokens!r}.")
        try:
            CorrectionTemplate(self.correction_template)
        except ValueError as error:
            found.append(str(error))
        return found + self._soft_problems()

    def _soft_problems(self) -> list[str]:
        found = divergence_problems(self.divergence, self.jsd_beta, None if self.soft_labels else "soft_labels=False")
        if self.self_teacher not in SELF_TEACHERS:
            found.append(f"`self_teacher` must be one of {', '.join(SELF_TEACHERS)}, got {self.self_teacher!r}.")
        if not 0 <= _number(self.self_teacher_decay) < 1:
            found.append(f"`self_teacher_decay` must be in [0, 1), got {self.self_teacher_decay!r}.")
        if self.teacher_top_k is not None and not _number(self.teacher_top_k) >= 1:
            found.append(f"`teacher_top_k` must be at least 1, or None, got {self.teacher_top_k!r}.")
        if self.soft_labels and self.loss_type != "nll":
            found.append(f"`loss_type` must be 'nll' with `soft_labels`, got {self.loss_type!r}: it is of hard labels.")
        if not self.soft_labels:
            for name in ("teacher_top_k", "self_teacher"):
                if getattr(self, name) != getattr(type(self), name):
                    found.append(f"`{name}` is of soft labels. Set `soft_labels=True`, or leave it out.")
        if self.self_teacher != AVERAGE and self.self_teacher_decay != type(self).self_teacher_decay:
            found.append("`self_teacher_decay` is of `self_teacher='average'`. Leave it out.")
        return found

    def rollout_settings(self) -> dict[str, Any]:
        found = super().rollout_settings()
        if self.soft_labels:
            found |= {
                name: getattr(self, name)
                for name in ("soft_labels", "teacher_top_k", "self_teacher", "self_teacher_decay")
            }
        return found

    @property
    def soft_divergence(self) -> Divergence:
        """What the soft labels' loss is."""
        return Divergence(self.divergence, self.jsd_beta)


@dataclass
class VerifiedAnswersConfig(IterativeSFTConfig):
    """
    Configuration of the [`VerifiedAnswersTrainer`]: [`IterativeSFTConfig`], the verifier, and how many answers are sampled and kept.

    `sft_weight=0` trains on the policy's own answers alone (RFT); with `verifier="none"` it is SSD.
    """

    _rollout_settings = (
        *IterativeSFTConfig._rollout_settings,
        "verifier",
        "num_samples",
        "num_kept",
        "max_new_tokens",
    )

    verifier: str | None = field(
        default=None,
        metadata={
            "help": "What accepts an answer. 'gsm8k': the number after ####; 'number': the final number; 'math': math-verify; "
            "'exact': the gold answer's words; 'regex:PATTERN': the same last match; 'module:function': a function of yours, "
            "(answer, gold, row) -> bool; 'none': every answer is kept."
        },
    )
    num_samples: int = field(default=4, metadata={"help": "Answers that are sampled for each prompt."})
    num_kept: int | None = field(
        default=None, metadata={"help": "Different accepted answers that are kept for each prompt. Default: all."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens after which an answer is cut off."})

    def problems(self) -> list[str]:
        found = super().problems()
        for name in ("num_samples", "max_new_tokens"):
            if not _number(getattr(self, name)) >= 1:
                found.append(f"`{name}` must be at least 1, got {getattr(self, name)!r}.")
        if self.num_kept is not None and not 1 <= _number(self.num_kept) <= _number(self.num_samples):
            found.append(
                f"`num_kept` must be from 1 to `num_samples` ({self.num_samples}), or None for all, got {self.num_kept!r}."
            )
        if self.temperature == 0 and _number(self.num_samples) > 1:
            found.append(
                f"`num_samples={self.num_samples}` at `temperature=0` is the same answer each time. Raise `temperature`, or set "
                "`num_samples=1`."
            )
        if self.verifier is None and not self.is_plain_sft:
            found.append(
                "`verifier` is required: what accepts an answer (gsm8k, number, math, exact, 'regex:PATTERN', "
                "'module:function'). 'none' keeps every answer."
            )
        elif self.verifier is not None:
            try:
                find_verifier(self.verifier)
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
        if self.gate is not None:
            found.append(
                "`gate` is BASH's: scheduled sampling would have to read every step's rows twice. Leave it out."
            )
        return found
