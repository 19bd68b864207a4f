"""A method of one's own: keep the first half of the gold response, let the policy write the second, teach gold there.

python examples/own_method.py [MODEL]
"""

import sys

from datasets import Dataset

from trl_exbias import Branch, IterativeSFTConfig, IterativeSFTTrainer


class HalfwayTrainer(IterativeSFTTrainer):
    _name = "Halfway"
    branch_kinds = ("halfway",)  # the loss is logged as loss/halfway

    def build_branches(self, examples, engine, options):
        masks = [[2 * j >= len(e.response_ids) for j in range(len(e.response_ids))] for e in examples]
        mixed = engine.mix(
            [e.context_ids for e in examples],
            [e.response_ids for e in examples],
            masks,
            options,
            [e.id for e in examples],
        )
        return [[Branch("halfway", tokens, e.response_labels)] for e, tokens in zip(examples, mixed, strict=True)]


if __name__ == "__main__":
    rows = [{"prompt": f"{i} + {i} =", "completion": f" {2 * i}, I am sure."} for i in range(16)]
    args = IterativeSFTConfig("runs/halfway", num_iterations=2, overwrite_output_dir=True, logging_steps=1)
    model = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
    HalfwayTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows)).train()
