"""How a run is spread over devices: processes, sharding, mixed precision, from accelerate's and DeepSpeed's files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UsageError


SHARDINGS = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp")
_NAMES = {"ddp": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp": "FSDP"}


@dataclass(frozen=True)
class Placement:
    """
    Args:
        num_processes (`int`): Training processes, one a device.
        sharding (`str`): One of `none`, `ddp`, `zero1`, `zero2`, `zero3`, `fsdp`.
        mixed_precision (`str`): `"no"`, `"bf16"` or `"fp16"`.
        offloads_optimizer, offloads_parameters (`bool`): Whether these live in the machine's memory instead.
        cpu (`bool`): Whether the devices are CPUs.
    """

    num_processes: int = 1
    sharding: str = "none"
    mixed_precision: str = "no"
    offloads_optimizer: bool = False
    offloads_parameters: bool = False
    cpu: bool = False

    @property
    def is_zero(self) -> bool:
        return self.sharding.startswith("zero")

    @property
    def shards_optimizer(self) -> int:
        """Processes that share one copy of the optimizer's states."""
        return self.num_processes if self.is_zero or self.sharding == "fsdp" else 1

    @property
    def shards_gradients(self) -> int:
        return self.num_processes if self.sharding in ("zero2", "zero3", "fsdp") else 1

    @property
    def shards_weights(self) -> int:
        return self.num_processes if self.sharding in ("zero3", "fsdp") else 1

    def __str__(self) -> str:
        device = "CPU process" if self.cpu else "GPU"
        parts = [f"{self.num_processes} {device}{('es' if self.cpu else 's') if self.num_processes > 1 else ''}"]
        parts += [_NAMES[self.sharding]] if self.sharding in _NAMES else []
        parts += [{"no": "no mixed precision"}.get(self.mixed_precision, self.mixed_precision)]
        offloaded = [
            name
            for name, off in (("optimizer", self.offloads_optimizer), ("parameters", self.offloads_parameters))
            if off
        ]
        return ", ".join([*parts, *([f"{' and '.join(offloaded)} offloaded"] if offloaded else [])])


def find_placement(
    config_file: str | None,
    num_processes: int | None,
    visible_devices: int,
    mixed_precision: str | None,
    use_cpu: bool,
    deepspeed: str | dict | None = None,
) -> Placement:
    """
    Args:
        config_file (`str`, *optional*): A file of accelerate's.
        num_processes (`int`, *optional*): Wins over the file's.
        visible_devices (`int`): GPUs of this machine, which is what a launch without further word uses.
        mixed_precision (`str`, *optional*): The recipe's; `None` leaves it to the file.
        use_cpu (`bool`): The recipe's.
        deepspeed (`str` or `dict`, *optional*): A DeepSpeed configuration named by the recipe.

    Raises:
        ValueError: for a file that cannot be read or says what cannot be planned for.
    """
    config: Mapping[str, Any] = {} if config_file is None else _read(config_file)
    kind = str(config.get("distributed_type", "NO")).upper()
    processes = num_processes or (config.get("num_processes") if kind != "NO" else None) or max(1, visible_devices)
    if not isinstance(processes, int) or processes < 1:
        raise UsageError(f"`num_processes` must be at least 1, got {processes!r}.")
    sharding, offloads_optimizer, offloads_parameters = "ddp" if processes > 1 else "none", False, False
    if kind == "DEEPSPEED" or deepspeed is not None:
        plugin = dict(config.get("deepspeed_config") or {})
        file = deepspeed if deepspeed is not None else plugin.get("deepspeed_config_file")
        if file is not None:
            zero = (_read(file) if isinstance(file, str) else file).get("zero_optimization", {})
            plugin = {
                "zero_stage": zero.get("stage", 0),
                "offload_optimizer_device": (zero.get("offload_optimizer") or {}).get("device"),
                "offload_param_device": (zero.get("offload_param") or {}).get("device"),
            }
        stage = plugin.get("zero_stage", 2)  # accelerate's default
        if stage not in (0, 1, 2, 3):
            raise UsageError(f"`zero_stage` must be 0, 1, 2 or 3, got {stage!r}.")
        sharding = f"zero{stage}" if stage else "ddp"
        offloads_optimizer = plugin.get("offload_optimizer_device") not in (None, "none")
        offloads_parameters = stage == 3 and plugin.get("offload_param_device") not in (None, "none")
    elif kind == "FSDP":
        sharding = "fsdp"
        offloads_parameters = offloads_optimizer = bool((config.get("fsdp_config") or {}).get("fsdp_offload_params"))
    return Placement(
        num_processes=processes,
        sharding=sharding,
        mixed_precision=mixed_precision or str(config.get("mixed_precision", "no")).lower(),
        offloads_optimizer=offloads_optimizer,
        offloads_parameters=offloads_parameters,
        cpu=use_cpu or bool(config.get("use_cpu")),
    )


def _read(path: str) -> dict[str, Any]:
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a mapping of keys to values.")
    return content
