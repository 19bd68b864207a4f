"""What the demo's runs have in common."""

from typing import Any


RUN_SETTINGS: dict[str, Any] = {
    "overwrite_output_dir": True,
    "gradient_checkpointing": False,  # memory is not scarce here, and it costs a third of the time
    "logging_steps": 4,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "num_rollouts_to_print": 0,
}
