"""A model's configurations, made such that they can be saved: transformers refuses to write what it reads with a warning."""

import logging
import tempfile

from transformers import GenerationConfig, PreTrainedModel

from .errors import UsageError
from .modeling import base_causal_lm
from .upstream import WITHOUT_EFFECT


logger = logging.getLogger(__name__)


def make_saveable(model: PreTrainedModel) -> None:
    """
    Leaves out settings of generation that have no effect, such as a temperature without sampling, which would end a run at its
    first checkpoint. What the model generates stays the same.

    Raises:
        ValueError: for a configuration that could not be saved all the same; says why.
    """
    base = base_causal_lm(model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            base.config.save_pretrained(folder)
        except Exception as error:
            # Whatever it is: it would be raised again at the first checkpoint.
            raise UsageError(f"The model's configuration could not be saved with a checkpoint: {error}") from error
    config = getattr(base, "generation_config", None)
    if config is not None:
        _mend(config, base.name_or_path or type(base).__name__)


def _mend(config: GenerationConfig, name: str) -> None:
    left_out = {}
    try:
        config.validate(strict=True)
    except ValueError as error:
        for setting in WITHOUT_EFFECT.findall(str(error)):
            left_out[setting] = getattr(config, setting)
            setattr(config, setting, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise UsageError(
            f"The generation config of {name} could not be saved with a checkpoint: {error} Correct its "
            "`generation_config.json`, or `model.generation_config`."
        ) from error
    if left_out:
        settings = ", ".join(f"{setting}={value!r}" for setting, value in left_out.items())
        logger.warning(
            f"Left out of the model's generation config: {settings}. With the other settings there it has no effect, and "
            "transformers would refuse to save it."
        )
