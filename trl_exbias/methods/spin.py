"""Self-Play Fine-Tuning (SPIN), a baseline."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from ..core.branches import GOLD, Branch, BranchedExample
from ..core.collating import BranchCollator
from ..core.data import Example
from ..core.layout import lay_out
from ..core.likelihood import label_nll
from ..core.losses import LossTerm, joint_loss, sum_by_kind
from ..core.scored import score_labels
from ..loop.iterative import IterativeSFTTrainer
from ..rollouts import RolloutEngine, SamplingOptions
from ..rollouts.counting import LABEL_LENGTH
from .configs import SPINConfig
from .plans import SPINPlan


class PairTerm(LossTerm):
    """SPIN's own term: one loss for each pair of a gold and an own response, divided by the number of pairs."""

    def count(self, batch: dict[str, torch.Tensor], kinds: tuple[str, ...]) -> torch.Tensor:
        return batch["reference_ratios"].isfinite().sum()


@dataclass
class PairCollator(BranchCollator):
    """
    Adds to a batch of [`BranchCollator`] what makes pairs of it: `in_response` (the positions whose targets are a response's)
    and `reference_ratios` (for each example; NaN where it has no own response, hence no pair).
    """

    def _padding(self) -> dict[str, Any]:
        return super()._padding() | {"in_response": False}

    def collate(
        self, examples: list[BranchedExample], arranged: list[list[int]] | None = None
    ) -> dict[str, torch.Tensor]:
        batch = super().collate(examples, arranged)
        own = [[branch.score for branch in example.branches if branch.kind != GOLD] for example in examples]
        batch["reference_ratios"] = torch.tensor([(*scores, float("nan"))[0] for scores in own])
        return batch


class SPINTrainer(IterativeSFTTrainer):
    """
    Self-Play Fine-Tuning: prefers the gold response to the policy's own, relative to the policy that the iteration began with.

    Between epochs the policy answers every prompt, `z ~ p_{θ_k}(· | x)`. Training then minimises, over pairs (y, z),

    `mean of ℓ(λ · [log p_θ(y|x)/p_{θ_k}(y|x) − log p_θ(z|x)/p_{θ_k}(z|x)])`,  `ℓ(t) = log(1 + e^{−t})`  (Eq. 4.7).

    The reference θ_k is the policy at the time of the rollouts. `log p_{θ_k}(y|x) − log p_{θ_k}(z|x)` is computed then and
    kept with the rollout, so that no second model is ever in memory, with or without LoRA.

    Differs from [`IterativeSFTTrainer`] in `build_branches` and in the loss, whose terms are pairs instead of tokens.

    Requirements: prompt-completion or conversational data.

    Relations: a baseline that [`BASHTrainer`] and [`RACTrainer`] are compared with. Like RAC it rolls out freely; unlike RAC
    it pushes the whole response down instead of correcting it token by token.

    References: Chen et al., *Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models*, ICML 2024.

    Example:

    ```python
    from datasets import load_dataset
    from trl_exbias import SPINConfig, SPINTrainer

    dataset = load_dataset("trl-lib/Capybara", split="train")
    trainer = SPINTrainer(model="Qwen/Qwen3-0.6B", args=SPINConfig("runs/spin", sft_epochs=0), train_dataset=dataset)
    trainer.train()
    ```
    """

    _tag_names = ["trl", "trl-exbias", "spin"]
    _name = SPINPlan.title
    _paper = {
        "title": "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
        "id": "2401.01335",
        # docstyle-ignore
        "citation": """\
@inproceedings{chen2024spin,
    title        = {{Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models}},
    author       = {Zixiang Chen and Yihe Deng and Huizhuo Yuan and Kaixuan Ji and Quanquan Gu},
    year         = 2024,
    booktitle    = {Proceedings of the 41st International Conference on Machine Learning}
}""",
    }
    config_class = SPINConfig
    phase_plan = SPINPlan()
    collator_class = PairCollator
    branch_kinds = ("own",)
    dataset_forms = SPINPlan.dataset_forms

    def build_branches(
        self, examples: list[Example], engine: RolloutEngine, options: SamplingOptions
    ) -> list[list[Branch]]:
        prompts = [example.context_ids for example in examples]
        own = engine.sample(prompts, options, [example.id for example in examples])
        if self.args.max_length is not None:
            own = [z[: max(0, self.args.max_length - len(x))] for x, z in zip(prompts, own, strict=True)]
        # Each response after its own context, as it will stand in training.
        contexts, gold, gold_labels = map(list, zip(*(example.gold for example in examples), strict=True))
        of_gold = self._log_probs(contexts, gold, gold_labels)
        of_own = self._log_probs(prompts, own, own)
        for parts in zip(contexts, gold, prompts, own, strict=True):
            self.rollout_stats.add(LABEL_LENGTH, sum(map(len, parts)), 1)
        return [
            [Branch("own", tokens, tokens, score=gold - mine)]
            for tokens, gold, mine in zip(own, of_gold, of_own, strict=True)
        ]

    def _log_probs(self, contexts: list[list[int]], tokens: list[list[int]], labels: list[list[int]]) -> list[float]:
        """log p(labels | context) of each row, in nats, under the current policy."""
        with self.accelerator.autocast():
            nll = label_nll(
                self.model, contexts, tokens, labels, self._tokenizer.pad_token_id, self.args.rollout_batch_tokens
            )
        return [-sum(row) for row in nll]

    def loss_terms(self) -> list[LossTerm]:
        return [LossTerm((GOLD,), self.args.sft_weight), PairTerm((), self.args.rollout_weight)]

    def score_branches(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        kinds: torch.Tensor,
        weights: torch.Tensor,
        counts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        inputs = dict(inputs)
        pairs, in_response = inputs["example_ids"], inputs.pop("in_response")
        reference = inputs.pop("reference_ratios")
        outputs = score_labels(model, self.model, lay_out(inputs, self.model), self.args.torch_compile)
        nll = -outputs.log_probs.float()
        # Targets inside a context are not part of a response.
        signs = torch.where(kinds == self.kinds.index(GOLD), 1.0, -1.0) * (in_response & (kinds >= 0))
        of_a_pair = pairs >= 0
        ratios = torch.zeros(len(reference), device=nll.device)
        ratios = ratios.index_add(0, pairs[of_a_pair].to(nll.device), (-nll * signs)[of_a_pair])
        is_pair = reference.isfinite()
        margins = self.args.spin_lambda * (ratios - torch.where(is_pair, reference, 0.0).to(ratios))
        loss_sums = sum_by_kind(nll * weights, kinds, len(self.kinds))
        pair_loss = (F.softplus(-margins) * is_pair).sum()
        terms = self.loss_terms()
        pairs_term, of_pairs = terms[-1], counts[-1].clamp(min=1)
        loss = joint_loss(loss_sums, counts, terms, self.kinds) + pairs_term.weight * pair_loss / of_pairs
        num_pairs = is_pair.sum()
        sums = {
            "entropy": outputs.entropy.sum(),
            "mean_token_accuracy": outputs.is_top1.sum(),
            "loss/pair": torch.stack([pair_loss.detach(), num_pairs]),
            "spin/margin": torch.stack([(margins.detach() * is_pair).sum(), num_pairs]),
            "spin/accuracy": torch.stack([((margins > 0) & is_pair).sum(), num_pairs]),
        }
        if self.aux_loss_enabled:
            sums["aux_loss"] = outputs.aux_loss
        return loss, loss_sums, sums
