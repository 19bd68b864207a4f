"""Reference-Answer-based Correction (RAC)."""

import logging
from typing import Any

from ..core.branches import Branch
from ..core.data import Example
from ..core.modeling import position_limit
from ..rollouts import RolloutEngine, SamplingOptions
from ..rollouts.counting import LABEL_LENGTH
from .bash import BASHTrainer
from .configs import RACConfig
from .plans import RACPlan
from .rac_template import CorrectionTemplate
from .soft_corrections import SoftlyCorrectingTrainer


logger = logging.getLogger(__name__)


class RACTrainer(SoftlyCorrectingTrainer):
    """
    Reference-Answer-based Correction: the policy corrects its own response, having been shown the reference answer.

    Between epochs, for every (x, y): the policy answers, `z ~ p_θ(· | x)`, and labels its own answer in one
    teacher-forced pass, `z̄_j = argmax_v p_θ(v | f(x, y), z_<j)` (Eq. 6), where f shows it the reference. Training
    minimises

    `J = J_SFT + J_RAC`,  `J_RAC = − mean over {j : z̄_j ≠ z_j} of log p_θ(z̄_j | x, z_<j)`  (Eq. 7): only corrections
    are learned. A response without any adds nothing.

    With `soft_labels` the label of *every* position is the whole distribution `q_j = p_φ(· | f(x, y), z_<j)`, and J_RAC the mean
    over all positions of a divergence of the policy from it.

    Differs from [`IterativeSFTTrainer`] only in `build_branches`, and with `soft_labels` in the loss.

    Requirements: prompt-completion or conversational data (f needs the prompt's and the reference's text). A model that
    follows the template: watch `rac/correction_rate`, near 0 there is nothing to learn, near 1 the template is not
    understood.

    Relations: [`BASHTrainer`] keeps gold as the label and gold's length, and needs no template. RAC's labels are the
    model's own: it corrects what a model can see is wrong once it is told the answer.

    References: Cen et al., *Bridging the Training-Inference Gap in LLMs by Leveraging Self-Generated Tokens*, TMLR 2025,
    Section 3.2, Algorithm 2.

    Example:

    ```python
    from datasets import load_dataset
    from trl_exbias import RACConfig, RACTrainer

    dataset = load_dataset("trl-lib/Capybara", split="train")
    trainer = RACTrainer(model="Qwen/Qwen3-0.6B", args=RACConfig("runs/rac"), train_dataset=dataset)
    trainer.train()
    ```
    """

    _tag_names = ["trl", "trl-exbias", "rac"]
    _name = RACPlan.title
    _paper = BASHTrainer._paper
    config_class = RACConfig
    phase_plan = RACPlan()
    branch_kinds = ("own",)
    dataset_forms = RACPlan.dataset_forms
    engine_calls_per_row = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._template = CorrectionTemplate(self.args.correction_template)
        self._template.check(self.train_dataset, self.processing_class, self.inference_template)
        self._max_positions = position_limit(self.model)

    def build_branches(
        self, examples: list[Example], engine: RolloutEngine, options: SamplingOptions
    ) -> list[list[Branch]]:
        responses = engine.sample([e.context_ids for e in examples], options, [e.id for e in examples])
        contexts = [self._template.context_ids(e.row, self.processing_class, self.inference_template) for e in examples]
        # A row whose correction context does not fit the model is not labelled: it trains on gold alone.
        fits = [self._fits(context, response) for context, response in zip(contexts, responses, strict=True)]
        if self.args.soft_labels:
            responses = [z[: self._room(e, z)] for e, z in zip(examples, responses, strict=True)]
        rows = [row for row, fit in enumerate(fits) if fit]
        asked = [contexts[row] for row in rows], [responses[row] for row in rows]
        if self.args.soft_labels:
            labelled = iter(self.label_softly([examples[row] for row in rows], *asked))
            self.rollout_stats.add(LABEL_LENGTH, sum(map(len, (*asked[0], *asked[1]))), len(rows))
        else:
            labelled = iter(engine.label(*asked))
        return [
            self._branch(example, response, next(labelled)) if fit else []
            for example, response, fit in zip(examples, responses, fits, strict=True)
        ]

    def _branch(self, example: Example, response: list[int], corrected: list[int]) -> list[Branch]:
        differs = [new != old for old, new in zip(response, corrected, strict=True)]
        self.rollout_stats.add("rac/correction_rate", sum(differs), len(differs))
        # Eq. 7: where the model agrees with itself there is nothing to learn but to repeat itself. Its distribution says more.
        labels = [
            label if differ or self.args.soft_labels else -100 for label, differ in zip(corrected, differs, strict=True)
        ]
        room = self._room(example, response)
        return [Branch("own", response[:room], labels[:room])]

    def _room(self, example: Example, response: list[int]) -> int:
        """Tokens of a response that `max_length` leaves."""
        if self.args.max_length is None:
            return len(response)
        return min(len(response), max(0, self.args.max_length - len(example.context_ids)))

    def _fits(self, context: list[int], response: list[int]) -> bool:
        fits = self._max_positions is None or len(context) + len(response) <= self._max_positions
        self.rollout_stats.add("rac/unlabelled_rate", not fits, 1)
        return fits
