"""Verified answers: the policy's own, of several, that a verifier accepts (STaR, RFT; without a verifier, SSD)."""

import logging
from typing import Any

from datasets import Dataset

from ..chat.answers import reference_text
from ..core.branches import Branch
from ..core.data import Example
from ..core.joint_dataset import JointDataset
from ..loop.iterative import IterativeSFTTrainer
from ..rollouts import RolloutEngine, SamplingOptions
from ..rollouts.noise import sample_ids
from ..run.errors import RunStoppedError
from .configs import VerifiedAnswersConfig
from .plans import VerifiedAnswersPlan
from .verifiers import accepts, check_verifier, find_verifier


logger = logging.getLogger(__name__)


class VerifiedAnswersTrainer(IterativeSFTTrainer):
    """
    Verified answers: trains on gold and on the policy's own answers that a verifier accepts.

    Between epochs the policy answers every prompt n times, `z^1 … z^n ~ p_θ(· | x)`. From the answers that the verifier
    accepts, those of the same text count once, and at most m are kept. Training then minimises

    `J = sft_weight · J_SFT + rollout_weight · J_own`,  `J_own = − mean over the tokens of the kept answers of log p_θ(z_j | x, z_<j)`.

    `sft_weight=0` is rejection-sampling fine-tuning (RFT), with `verifier="none"` simple self-distillation (SSD).

    Differs from [`IterativeSFTTrainer`] only in `build_branches`.

    Requirements: prompt-completion or conversational data, whose gold answers the verifier accepts. A model that solves some of
    them: watch `verified/pass_at_n`.

    Relations: [`RACTrainer`] corrects a wrong answer token by token, this one leaves it out. Right answers are imitated as they
    are: what stands before a mistake that a model would make is visited, a mistake is not.

    References: Zelikman et al., *STaR: Bootstrapping Reasoning With Reasoning*, NeurIPS 2022; Yuan et al., *Scaling Relationship
    on Learning Mathematical Reasoning with Large Language Models* (RFT), 2023; SSD, arXiv 2604.01193, 2026.

    Example:

    ```python
    from datasets import load_dataset
    from trl_exbias import VerifiedAnswersConfig, VerifiedAnswersTrainer

    dataset = load_dataset("openai/gsm8k", "main", split="train").rename_columns({"question": "prompt", "answer": "completion"})
    args = VerifiedAnswersConfig("runs/verified", verifier="gsm8k", num_samples=8, num_kept=4)
    trainer = VerifiedAnswersTrainer(model="Qwen/Qwen3-0.6B", args=args, train_dataset=dataset)
    trainer.train()
    ```
    """

    _tag_names = ["trl", "trl-exbias", "verified"]
    _name = VerifiedAnswersPlan.title
    _paper = {
        "title": "Scaling Relationship on Learning Mathematical Reasoning with Large Language Models",
        "id": "2308.01825",
        # docstyle-ignore
        "citation": """\
@misc{yuan2023scaling,
    title        = {{Scaling Relationship on Learning Mathematical Reasoning with Large Language Models}},
    author       = {Zheng Yuan and Hongyi Yuan and Chengpeng Li and Guanting Dong and Keming Lu and Chuanqi Tan and Chang Zhou and Jingren Zhou},
    year         = 2023,
    eprint       = {2308.01825},
    archivePrefix = {arXiv}
}""",
    }
    config_class = VerifiedAnswersConfig
    phase_plan = VerifiedAnswersPlan()
    branch_kinds = ("own",)
    dataset_forms = VerifiedAnswersPlan.dataset_forms

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine_calls_per_row = self.args.num_samples
        self._verifies = None if self.args.verifier is None else find_verifier(self.args.verifier)

    def _check_data(self, args: VerifiedAnswersConfig, model: Any, train_dataset: Dataset, *others: Any) -> Any:
        tokenizer, form = super()._check_data(args, model, train_dataset, *others)
        if args.verifier is not None:
            check_verifier(args.verifier, train_dataset, tokenizer)
        return tokenizer, form

    def build_branches(
        self, examples: list[Example], engine: RolloutEngine, options: SamplingOptions
    ) -> list[list[Branch]]:
        n = self.args.num_samples
        prompts = [example.context_ids for example in examples for _ in range(n)]
        drawn = engine.sample(prompts, options, sample_ids([example.id for example in examples], n))
        return [
            self._kept(example, drawn[place : place + n], options)
            for place, example in zip(range(0, len(drawn), n), examples, strict=True)
        ]

    def _kept(self, example: Example, answers: list[list[int]], options: SamplingOptions) -> list[Branch]:
        room = options.max_new_tokens
        if self.args.max_length is not None:
            room = min(room, max(0, self.args.max_length - len(example.context_ids)))
        gold = reference_text(example.row, self.processing_class, self.inference_template).strip()
        accepted, distinct = 0, dict[str, list[int]]()
        for tokens in answers:
            text = self._tokenizer.decode(tokens, skip_special_tokens=True)
            if options.stop_strings is not None:
                text = options.stop_strings.text_before(text)
            text = text.strip()
            if not text or not room or not self._accepts(tokens, text, gold, example, room, options):
                continue
            accepted += 1
            distinct.setdefault(text, tokens[:room])
        kept = [*distinct.values()][: self.args.num_kept]
        if self._verifies is not None:
            self.rollout_stats.add("verified/acceptance_rate", accepted, len(answers))
            self.rollout_stats.add("verified/pass_at_n", accepted > 0, 1)
        self.rollout_stats.add("verified/distinct_answers", len(distinct), 1)
        self.rollout_stats.add("verified/kept_answers", len(kept), 1)
        return [Branch("own", tokens, tokens) for tokens in kept]

    def _accepts(
        self, tokens: list[int], text: str, gold: str, example: Example, room: int, options: SamplingOptions
    ) -> bool:
        if self._verifies is None:
            return True
        # An answer that was cut off is none: its labels would not teach how to end one.
        is_whole = options.ended(tokens) and len(tokens) <= room
        return is_whole and accepts(self._verifies, text, gold, example.row)

    def joint_dataset(self, rollouts: list[Dataset], rows: list[int] | None) -> JointDataset:
        if not any(map(len, rollouts)):
            what = "No answer of the policy's was accepted: "
            remedy = "Raise `num_samples` or `temperature`, or look at what the verifier rejects."
            if self.args.sft_weight == 0:
                raise RunStoppedError(
                    f"{what}with `sft_weight=0` there is nothing to train on. {remedy} Then start over with "
                    "`overwrite_output_dir=True`."
                )
            logger.warning(f"{what}this iteration trains on gold alone. {remedy}")
        return super().joint_dataset(rollouts, rows)
