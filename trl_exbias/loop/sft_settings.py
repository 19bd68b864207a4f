"""Settings of TRL's that a run with rollouts cannot have."""

from trl import SFTConfig


def problems_with_branches(args: SFTConfig) -> list[str]:
    """Settings of TRL's that a run with rollouts cannot have; each is on the page "Differences from SFTTrainer"."""
    found = [
        f"`{name}=True` is not supported together with branches ({reason}). Set `{name}=False`."
        for name, reason in (
            ("packing", "a packed row mixes several contexts; branches share one context already"),
            ("padding_free", "it flattens a batch into one row, which branches cannot share"),
        )
        if getattr(args, name)
    ]
    if args.truncation_mode != "keep_start":
        found.append(
            f"`truncation_mode={args.truncation_mode!r}` would cut the prompt; only 'keep_start' is supported together with "
            "branches."
        )
    if args.label_smoothing_factor:
        found.append(
            "`label_smoothing_factor` is not supported together with branches: it needs the full logits, which are never "
            "built. Set it to 0."
        )
    if args.enable_jit_checkpoint:
        found.append("`enable_jit_checkpoint` is not needed: a run saves at SIGTERM by itself. Leave it off.")
    if args.auto_find_batch_size:
        found.append(
            "`auto_find_batch_size=True` is not supported together with rollouts: after an out-of-memory error it starts "
            "the run again, with weights that have been trained already. Lower `per_device_train_batch_size` and raise "
            "`gradient_accumulation_steps` instead; `exbias check` plans the memory."
        )
    if args.train_sampling_strategy == "batch_rebalance":
        found.append(
            "`train_sampling_strategy='batch_rebalance'` is not supported together with rollouts: its batches have as many "
            "rows as their gold lengths suggest, which branches change. Use 'group_by_length'."
        )
    return found
