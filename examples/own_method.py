"""A method of one's own: keep the first part of the gold response, let the policy write the rest, teach gold there.

python examples/own_method.py [MODEL]
exbias train --method examples.own_method:HalfwayTrainer --config recipe.yaml
"""

import sys
from dataclasses import dataclass, field

from datasets import Dataset

from trl_exbias import Branch, IterativeSFTConfig, IterativeSFTTrainer


@dataclass
class HalfwayConfig(IterativeSFTConfig):
    _rollout_settings = (*IterativeSFTConfig._rollout_settings, "kept")  # what rollouts on disk depend on

    kept: float = field(default=0.5, metadata={"help": "Share of the gold response that is kept."})

    def problems(self):
        wrong = [] if 0 <= self.kept <= 1 else [f"`kept` must be between 0 and 1, got {self.kept}."]
        return super().problems() + wrong


class HalfwayTrainer(IterativeSFTTrainer):
    _name = "Halfway"
    config_class = HalfwayConfig
    branch_kinds = ("halfway",)  # the loss is logged as loss/halfway

    def build_branches(self, examples, engine, options):
        gold = [e.response_ids for e in examples]
        masks = [[j >= self.args.kept * len(y) for j in range(len(y))] for y in gold]
        mixed = engine.mix([e.context_ids for e in examples], gold, masks, options, [e.id for e in examples])
        return [[Branch("halfway", tokens, e.response_labels)] for e, tokens in zip(examples, mixed, strict=True)]


if __name__ == "__main__":
    rows = [{"prompt": f"{i} + {i} =", "completion": f" {2 * i}, I am sure."} for i in range(16)]
    args = HalfwayConfig("runs/halfway", num_iterations=2, overwrite_output_dir=True, logging_steps=1)
    model = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
    HalfwayTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows)).train()
