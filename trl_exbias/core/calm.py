"""Imports that say nothing: for commands, and for the processes that they start."""

import logging
import os
import warnings


#: Bars of a shorter phase are not drawn: a run over few rows would show a dozen.
_SECONDS_BEFORE_A_BAR = "5"


def calm_imports() -> None:
    """For the start of a process, before any library is imported: it and the processes that it launches import quietly."""
    os.environ.setdefault("TQDM_DELAY", _SECONDS_BEFORE_A_BAR)  # read when tqdm is imported
    # Printed whenever DeepSpeed is imported on a machine without a GPU, also where nothing uses it.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.funcName != "get_accelerator")
    # Printed whenever bitsandbytes is imported on a CPU of some kinds, also where nothing is quantized.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # transformers 5.24 has new names for settings and attributes that older releases know by the old ones alone.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
