"""Names of tasks and methods, for a command line that answers before torch is imported. A test compares them with the real ones."""

TASK_NAMES = ("fix", "fix-reference", "known-start", "no-landmarks", "walk")
METHODS = (
    "sft",
    "bash-0.2",
    "bash-0.5",
    "bash-1",
    "bash-1-gold",
    "scheduled-sampling-0.5",
    "rac",
    "spin",
    "kd",
    "imitkd",
    "dad-dagger-0.5",
    "dad",
    "bash-0.5-gated",
    "dad-dagger-0.5-gated",
    "rac-soft",
    "verified",
)
