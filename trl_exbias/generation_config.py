"""A model's generation config, made one that can be saved: transformers refuses to write what it reads with a warning."""

import logging
import re

from transformers import PreTrainedModel

from .modeling import base_causal_lm


logger = logging.getLogger(__name__)

# How transformers 5.17 lists what has no effect (`GenerationConfig.validate`).
_WITHOUT_EFFECT = re.compile(r"^- `(\w+)`: ", re.MULTILINE)


def make_saveable(model: PreTrainedModel) -> None:
    """
    Leaves out settings that have no effect, such as a temperature without sampling, which would end a run at its first
    checkpoint. What the model generates stays the same.

    Raises:
        ValueError: for a generation config that contradicts itself.
    """
    base = base_causal_lm(model)
    config = getattr(base, "generation_config", None)
    if config is None:
        return
    left_out = {}
    try:
        config.validate(strict=True)
    except ValueError as error:
        for name in _WITHOUT_EFFECT.findall(str(error)):
            left_out[name] = getattr(config, name)
            setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise ValueError(
            f"The generation config of {base.name_or_path or type(base).__name__} could not be saved with a checkpoint: {error} "
            "Mend its `generation_config.json`, or `model.generation_config`."
        ) from error
    if left_out:
        settings = ", ".join(f"{name}={value!r}" for name, value in left_out.items())
        logger.warning(
            f"Left out of the model's generation config: {settings}. With the other settings there it has no effect, and "
            "transformers would refuse to save it."
        )
