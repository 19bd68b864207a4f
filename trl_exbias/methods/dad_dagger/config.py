"""Configuration of the [`DaDDaggerTrainer`]."""

from dataclasses import dataclass, field

from ...core.divergences import DIVERGENCES, FORWARD_KL, Divergence
from ...core.gates import GATES, Gate
from ...loop.config import IterativeSFTConfig
from .setting_problems import setting_problems


@dataclass
class DaDDaggerConfig(IterativeSFTConfig):
    """
    Configuration of the [`DaDDaggerTrainer`]: [`IterativeSFTConfig`], the trajectories and the teacher.

    Defaults are the paper's (Pozzi 2025, §6): contexts of 128 tokens, horizons of 10, 3 iterations of up to 4 epochs, α = 0.5,
    batches of 32, a constant learning rate of 2.5e-5, early stopping within an iteration.
    """

    _rollout_settings = (*IterativeSFTConfig._rollout_settings, "context_length", "rollout_length", "stride")

    num_iterations: int = field(
        default=3, metadata={"help": "Iterations. Rollouts are made between them, so 1 trains on the data alone."}
    )
    num_train_epochs: float = field(default=4.0, metadata={"help": "Epochs of each iteration, at most."})
    sft_epochs: float = field(default=0.0, metadata={"help": "Epochs of plain SFT before the first iteration."})
    learning_rate: float = field(default=2.5e-5, metadata={"help": "The initial learning rate for AdamW."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The scheduler type to use."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "The batch size per device."})
    iteration_patience: int | None = field(
        default=1,
        metadata={
            "help": "An iteration ends after this many evaluations in a row without a better loss, and its best weights continue. "
            "Needs an evaluation set. None: never."
        },
    )
    alpha: float = field(
        default=0.5,
        metadata={
            "help": "Weight of the hard labels (the data's next token). The soft labels (the teacher's "
            "distribution) have the weight 1 − alpha. 1 is DaD and needs no teacher; 0 is ImitKD."
        },
    )
    context_length: int = field(
        default=128, metadata={"help": "H: tokens of true context in a trajectory of plain text."}
    )
    rollout_length: int = field(
        default=10, metadata={"help": "T: tokens of a horizon, which are labelled and rolled out."}
    )
    stride: int | None = field(
        default=None, metadata={"help": "Tokens from one trajectory to the next. Default: `rollout_length`."}
    )
    aggregate: str = field(
        default="all",
        metadata={"help": "Iterations whose rollouts are trained on: 'all', the 'last', or the last n."},
    )
    gate: str | None = field(
        default=None,
        metadata={
            "help": "Trust gold less where the teacher finds it unlikely after the policy's own tokens: 'threshold', "
            "min(1, q(gold) / `gate_epsilon`), or 'relative', q(gold) / max q. Default: gold counts whole.",
            "choices": list(GATES),
        },
    )
    gate_epsilon: float = field(
        default=0.1, metadata={"help": "Probability from which on `gate='threshold'` trusts gold whole."}
    )
    divergence: str = field(
        default=FORWARD_KL,
        metadata={
            "help": "What is minimised between soft labels q and policy p: 'forward_kl' KL(q‖p), 'reverse_kl' KL(p‖q), or "
            "'jensen_shannon' (GKD's, with `jsd_beta`).",
            "choices": list(DIVERGENCES),
        },
    )
    jsd_beta: float = field(
        default=0.5, metadata={"help": "β of `divergence='jensen_shannon'`: the soft labels' share of the mixture."}
    )
    kd_temperature: float = field(default=1.0, metadata={"help": "Temperature of the soft labels and their loss."})
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Teacher: hub id or folder of a model or of a LoRA adapter. With `teacher_server_base_url`: its name there."
        },
    )
    teacher_server_base_url: str | None = field(
        default=None,
        metadata={
            "help": "A running `vllm serve` of the teacher, e.g. http://127.0.0.1:8000, instead of loading it: gives its "
            "`teacher_top_k`. Its key, if it has one, comes from the environment variable TEACHER_API_KEY."
        },
    )
    teachers: dict | str | None = field(
        default=None,
        metadata={
            "help": "Several teachers instead of one, by names of your choice: {maths: path, code: path}. Each row names its own in "
            "the column `teacher`. Needs `teacher_top_k`."
        },
    )
    teacher_model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Arguments of the teacher's `from_pretrained`: dtype, device_map, revision, …"}
    )
    teacher_top_k: int | None = field(
        default=None,
        metadata={"help": "Keep the teacher's k most probable tokens and the mass of the rest. Default: all tokens."},
    )
    cache_teacher: bool = field(
        default=True,
        metadata={
            "help": "Score each branch with the teacher once, keep its labels on disk and unload the teacher for the "
            "epochs. Otherwise the teacher stays loaded and runs in every step."
        },
    )
    soft_label_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the teacher's labels. Runs with the same teacher can share it. Default: "
            "`soft-labels` in the output directory."
        },
    )
    trainable_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the modules to train, with wildcards. The others are frozen. The paper trains the last "
            "block and the final norm. Default: all."
        },
    )
    cache_trunk: bool = field(
        default=True,
        metadata={
            "help": "Where the lower layers are frozen (`trainable_modules`, or an adapter of upper layers), run them over each "
            "branch once and keep their output on disk; else run them in every step."
        },
    )

    _VALID_DICT_FIELDS = [*IterativeSFTConfig._VALID_DICT_FIELDS, "teacher_model_init_kwargs", "teachers"]

    def problems(self) -> list[str]:
        return super().problems() + setting_problems(self)

    @property
    def label_gate(self) -> Gate | None:
        """How far gold is trusted on the student's own contexts."""
        return None if self.gate is None else Gate(self.gate, self.gate_epsilon)

    @property
    def soft_divergence(self) -> Divergence:
        """What the soft labels' loss is."""
        return Divergence(self.divergence, self.jsd_beta)

    @property
    def is_plain_sft(self) -> bool:
        return False  # the data are trajectories, also where nothing rolls out

    @property
    def rollouts_in_use(self) -> int | None:
        """How many of the newest rollouts an iteration trains on; `None` if `aggregate` is not valid."""
        if self.aggregate == "all":
            return self.num_iterations
        if self.aggregate == "last":
            return 1
        try:
            number = int(self.aggregate)
        except (TypeError, ValueError):
            return None
        return number if number >= 1 else None
