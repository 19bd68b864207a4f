"""The text side of a multimodal checkpoint: its tokenizer, which reads the data, and its processor, which is saved with the model."""

import logging
from typing import Any

from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainingArguments,
)

from ..core.modeling import is_multimodal


logger = logging.getLogger(__name__)


def load_processing_class(model: Any, args: TrainingArguments) -> PreTrainedTokenizerBase | ProcessorMixin | None:
    """What is saved with a model: a tokenizer, or a processor that has one. `None` for a model that comes from nowhere."""
    name = model if isinstance(model, str) else model.config.name_or_path
    if not name:
        return None
    revision = (args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None
    kwargs = {"revision": revision, "trust_remote_code": args.trust_remote_code}
    try:
        return AutoProcessor.from_pretrained(name, **kwargs)
    except ImportError as error:
        # What reads pictures or sounds is not needed, and need not be installed.
        logger.warning(f"The processor of {name} cannot be loaded and will not be saved with the model: {error}")
        return AutoTokenizer.from_pretrained(name, **kwargs)


def text_tokenizer(processing_class: Any) -> Any:
    """The tokenizer of a processor, with its chat template; whatever else is given, as it is."""
    if not isinstance(processing_class, ProcessorMixin):
        return processing_class
    tokenizer = processing_class.tokenizer
    if tokenizer.chat_template is None:
        tokenizer.chat_template = processing_class.chat_template
    return tokenizer


def leave_unused_parameters(args: TrainingArguments, model: Any) -> None:
    """
    Lets DDP look for parameters without a gradient, as TRL does for a vision-language model, where text leaves the tower of
    another modality without one.
    """
    reentrant = (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    if args.ddp_find_unused_parameters is not None or reentrant:
        return
    config = _config(model, args)
    if config is not None and is_multimodal(config):
        args.ddp_find_unused_parameters = True


def _config(model: Any, args: TrainingArguments) -> PretrainedConfig | None:
    if not isinstance(model, str):
        return model.config
    try:
        return AutoConfig.from_pretrained(
            model, revision=(args.model_init_kwargs or {}).get("revision"), trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError):
        return None  # an adapter's folder
