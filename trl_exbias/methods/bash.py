"""Batch-Scheduled Sampling (BASH)."""

from typing import Any

from ..core.branches import Branch
from ..core.data import Example
from ..core.likelihood import label_values
from ..core.modeling import position_limit
from ..loop.iterative import IterativeSFTTrainer
from ..rollouts import RolloutEngine, SamplingOptions
from ..rollouts.noise import derive_seed, uniform
from .configs import BASHConfig
from .plans import MixingPlan
from .rac_template import CorrectionTemplate
from .reference_gate import ReferenceGate, check_shown


class BASHTrainer(IterativeSFTTrainer):
    """
    Batch-Scheduled Sampling: trains to say the gold token after a prefix in which the policy has mixed its own.

    Between epochs every response is mixed offline: with mask m_j ~ Bernoulli(β) for each position, left to right,
    `ŷ_j = z_j ~ p_θ(· | x, ŷ_<j)` where m_j = 1, else `ŷ_j = y_j` (Eq. 4). Training then minimises

    `J = J_SFT + J_BASH`,  `J_BASH = − mean_j log p_θ(y_j | x, ŷ_<j)`  (Eq. 5): the label is always gold.

    A `repetition_penalty` looks at the prompt and at the mixed prefix ŷ_<j, the gold tokens in it included.

    Differs from [`IterativeSFTTrainer`] only in `build_branches`.

    Requirements: as [`IterativeSFTTrainer`]; works on prompt-completion, conversational, plain-text and tokenised data
    (plain text: everything after the first token is the response).

    Relations: [`RACTrainer`] lets the policy answer freely and corrects what it said, for about four times the rollout
    cost; BASH stays at gold length and close to gold. With β = 0 there is nothing to mix, and training is SFT.
    [`DaDDaggerTrainer`] adds a teacher's distribution to the gold label.

    References: Cen et al., *Bridging the Training-Inference Gap in LLMs by Leveraging Self-Generated Tokens*, TMLR 2025,
    Section 3.1, Algorithm 1.

    Example:

    ```python
    from datasets import load_dataset
    from trl_exbias import BASHConfig, BASHTrainer

    dataset = load_dataset("trl-lib/tldr", split="train")
    trainer = BASHTrainer(model="Qwen/Qwen3-0.6B", args=BASHConfig("runs/bash", beta=0.2), train_dataset=dataset)
    trainer.train()
    ```
    """

    _tag_names = ["trl", "trl-exbias", "bash"]
    _name = MixingPlan.title
    _paper = {
        "title": "Bridging the Training-Inference Gap in LLMs by Leveraging Self-Generated Tokens",
        # docstyle-ignore
        "citation": """\
@article{cen2025bridging,
    title        = {{Bridging the Training-Inference Gap in LLMs by Leveraging Self-Generated Tokens}},
    author       = {Zhepeng Cen and Yao Liu and Siliang Zeng and Pratik Chaudhari and Huzefa Rangwala and George Karypis and Rasool Fakoor},
    year         = 2025,
    journal      = {Transactions on Machine Learning Research},
    url          = {https://openreview.net/forum?id=pWSrm3oP8b}
}""",
    }
    config_class = BASHConfig
    phase_plan = MixingPlan()
    branch_kinds = ("mixed",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gating = None
        if self.args.label_gate is not None and self.rolls_out:
            template = CorrectionTemplate(self.args.gate_template)
            check_shown(template, self.train_dataset, self.processing_class, self.inference_template)
            self._gating = ReferenceGate(
                self.args.label_gate,
                template,
                self._read,
                position_limit(self.model),
                self.rollout_stats.add,
            )

    @property
    def rolls_out(self) -> bool:
        return super().rolls_out and self.args.beta > 0

    def build_branches(
        self, examples: list[Example], engine: RolloutEngine, options: SamplingOptions
    ) -> list[list[Branch]]:
        masks = [self._mask(example, options.seed) for example in examples]
        mixed = engine.mix(
            [example.context_ids for example in examples],
            [example.response_ids for example in examples],
            masks,
            options,
            [example.id for example in examples],
        )
        for example, mask, tokens in zip(examples, masks, mixed, strict=True):
            drawn = sum(mask)
            changed = sum(token != gold for token, gold in zip(tokens, example.response_ids, strict=True))
            self.rollout_stats.add("bash/replaced_rate", drawn, len(mask))
            self.rollout_stats.add("bash/changed_rate", changed, drawn)
        # Eq. 5: the label stays gold, whatever was drawn.
        branches = [
            Branch("mixed", tokens, example.response_labels) for example, tokens in zip(examples, mixed, strict=True)
        ]
        if self._gating is not None:
            branches = self._gating.gated(examples, branches, self.processing_class, self.inference_template)
        return [[branch] for branch in branches]

    def _read(self, value: Any, contexts: list, tokens: list, labels: list) -> list[list[float]]:
        pad, most = self._tokenizer.pad_token_id, self.args.rollout_batch_tokens
        with self.accelerator.autocast():
            return label_values(value, self.model, contexts, tokens, labels, pad, most)

    def _mask(self, example: Example, seed: int) -> list[bool]:
        """m_j ~ Bernoulli(β) where the model is responsible for the token (a gold label is there)."""
        draws = uniform(derive_seed(seed, "mask"), [example.id], len(example.response_ids))[0].tolist()
        return [
            draw < self.args.beta and label != -100 for draw, label in zip(draws, example.response_labels, strict=True)
        ]
