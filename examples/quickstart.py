"""RAC in a TRL script: the trainer's name is the whole change.

python examples/quickstart.py [MODEL]
"""

import sys

from datasets import Dataset

from trl_exbias import RACConfig, RACTrainer


model = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
questions = {"What is the capital of France?": "It is Paris.", "What is the capital of Japan?": "It is Tokyo."}
dataset = Dataset.from_list(
    [
        {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
        for q, a in questions.items()
    ]
)
trainer = RACTrainer(
    model=model,
    args=RACConfig("runs/quickstart", max_new_tokens=32, overwrite_output_dir=True, logging_steps=1),
    train_dataset=dataset,
)
trainer.train()
trainer.save_model()
