"""Looks at all that a run is made of, in the order in which it would come, and plans it."""

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from ..chat.data_checks import TRAINING, evaluation_name, readable
from ..core.files import SHARE_OF_DISK, free_bytes
from ..methods.verifiers import check_verifier
from ..settings.findings import Findings
from ..settings.phase_plan import PhasePlan
from . import checks, disk, teacher_checks
from .estimate import Estimate, estimate, labels_elsewhere, shares_context
from .hub import Hub, NotAtHand
from .lengths import Lengths, measure
from .memory import GIB
from .phases import PlannedPhase, RunShape, plan_phases
from .placement import Placement, find_placement
from .report import Plan
from .rows import FirstRows, first_rows


if TYPE_CHECKING:
    from ..loop.plan import RunPlan
    from ..settings.arguments import Arguments

# The share of a device's memory that is not for tensors: the driver's context, kernels, and what the allocator cannot hand out.
_RESERVED = 0.06


def look(
    findings: Findings,
    hub: Hub,
    arguments: "Arguments",
    num_processes: int | None = None,
    accelerate_file: str | None = None,
    gpu_memory_gib: float | None = None,
) -> Plan | None:
    """
    Checks the files that a command's arguments name, and plans the run.

    Args:
        num_processes, accelerate_file, gpu_memory_gib: What is said of the devices.

    Returns:
        [`Plan`]: `None` where the configuration itself is not valid.
    """
    args, model_args = arguments.config, arguments.model
    checks.check_output(findings, args)
    config = tokenizer = None
    kwargs = {"revision": model_args.model_revision, "trust_remote_code": bool(args.trust_remote_code)}
    if model_args.model_name_or_path is None:
        findings.error("model", "`model_name_or_path` is missing: a model id of the hub, or a folder.")
    else:
        name = model_args.model_name_or_path
        config = checks.read_config(findings, hub, "model", "model_name_or_path", name, **kwargs)
        tokenizer = checks.read_tokenizer(findings, hub, name, args, **kwargs)
    rows, form = _rows(findings, hub, arguments, "train", config)
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no":
        _rows(findings, hub, arguments, "test", config)
    lengths = _lengths(findings, arguments.plan, rows, form, tokenizer, config, args)
    teachers: list[Any] = []
    if arguments.plan.has_teacher:
        read = None if rows is None else rows.rows
        teachers = teacher_checks.check_teachers(findings, hub, args, tokenizer, config, read)
        if form == "text":
            teacher_checks.check_trajectories(findings, args, config, teachers)
    if not arguments.are_valid:
        return None
    placement = None
    with findings.collect("placement"):
        placement = _placement(arguments, num_processes, accelerate_file)
    if placement is None:
        return None
    checks.check_placement(findings, args, placement, model_args.use_peft)
    return _plan(findings, arguments, placement, config, teachers, rows, form, lengths, gpu_memory_gib)


def _rows(
    findings: Findings, hub: Hub, arguments: "Arguments", kind: str, config: Any
) -> tuple[FirstRows | None, str | None]:
    data, mixture = arguments.data, arguments.mixture
    if (data.dataset_streaming or mixture.streaming) and not arguments.config.is_plain_sft:
        findings.error(
            "data",
            "streamed data cannot be rolled out: every row is visited again in each iteration, by its number. Leave "
            "`dataset_streaming` and `streaming` out.",
        )
    if kind == "test" and mixture.datasets and not mixture.test_split_size:
        findings.error("data", "evaluation needs `test_split_size` when `datasets` is given.")
        return None, None
    try:
        with findings.collect("data"):
            found = first_rows(data, mixture, kind, hub, arguments.plan.reads_documents)
            name = TRAINING if kind == "train" else evaluation_name("eval")
            found = dataclasses.replace(found, rows=readable(found.rows, name))
            return found, checks.check_data(findings, found, name, arguments.config, arguments.plan, config)
    except NotAtHand as away:
        findings.warn(
            "data",
            f"`{away}` is neither here nor in the cache, and the hub does not answer: columns, templates and the number of "
            "rows were not checked.",
        )
    return None, None


def _lengths(
    findings: Findings,
    plan: PhasePlan,
    rows: FirstRows | None,
    form: str | None,
    tokenizer: Any,
    config: Any,
    args: Any,
) -> Lengths | None:
    if form is None or rows is None:
        return None
    shown = None if args.is_plain_sft else plan.shown_template(args)
    if shown is not None:
        checks.check_correction(findings, rows.rows, shown, args, tokenizer)
    if plan.has_verifier and tokenizer is not None and not args.is_plain_sft:
        with findings.collect("data"):
            check_verifier(args.verifier, rows.rows, tokenizer)
    if tokenizer is None or not checks.check_rows_and_tokenizer(findings, rows.rows, form, tokenizer, config, args):
        return None
    lengths = measure(rows.rows, rows.num_read, form, tokenizer, args, plan.has_teacher, shown)
    checks.check_lengths(findings, lengths, args, form, config, rows.are_all)
    return lengths if lengths.rows else None


def _placement(arguments: "Arguments", num_processes: int | None, accelerate_file: str | None) -> Placement:
    asked = arguments.asked
    # TRL trains in bf16 unless told otherwise; on a CPU, this package in float32.
    precision = None
    if asked.fp16:
        precision = "fp16"
    elif asked.bf16 or (asked.bf16 is None and not asked.use_cpu):
        precision = "bf16"
    visible = 0 if asked.use_cpu else torch.cuda.device_count()
    return find_placement(accelerate_file, num_processes, visible, precision, asked.use_cpu, asked.deepspeed)


def _plan(
    findings: Findings,
    arguments: "Arguments",
    placement: Placement,
    config: Any,
    teachers: list[Any],
    rows: FirstRows | None,
    form: str | None,
    lengths: Lengths | None,
    gpu_memory_gib: float | None,
) -> Plan:
    args, model_args = arguments.config, arguments.model
    labels_prompts = form in ("messages", "text") and not arguments.plan.has_teacher and not args.assistant_only_loss
    shared = shares_context(model_args.attn_implementation, args, config)
    shape = RunShape(arguments.plan, args, lengths, shared, labels_prompts)
    num_rows = None if rows is None else rows.num_rows
    if lengths is not None:
        num_rows = lengths.scaled(num_rows)
    elif arguments.plan.has_teacher or args.rollout_turns == "all":
        num_rows = None  # a row of the data is many of the run
    if args.is_plain_sft and (args.packing or arguments.data.dataset_streaming or arguments.mixture.streaming):
        num_rows = None  # several rows of the data are one of the run; a stream's are not counted
    phases, plan = plan_phases(shape, args, num_rows, placement.num_processes)
    unreached = plan.unreached(args.max_steps) if plan is not None and shape.rolls_out else None
    if unreached is not None:
        findings.warn("steps", unreached)
    data = {
        "rows": num_rows,
        "is_bound": rows is not None and rows.is_bound,
        "rows_seen": 0 if lengths is None else len(lengths.rows),
        "mean_context": None if lengths is None else lengths.mean_context,
        "mean_response": None if lengths is None else lengths.mean_response,
    }
    device = None if gpu_memory_gib is None else round(gpu_memory_gib * GIB)
    planned = Plan(placement, phases, data, device_bytes=device)
    if config is None:
        return planned
    peft_config = None
    if model_args.use_peft:
        from trl import get_peft_config  # imports PEFT, which takes long and which few recipes need

        peft_config = get_peft_config(model_args)
    reads = arguments.plan.reads_for_labels or arguments.plan.shown_template(args) is not None
    found = estimate(findings, config, teachers, args, model_args, peft_config, placement, phases, device, reads)
    planned.estimate = found
    if found is None:
        return planned
    name = (config.architectures or [config.model_type])[0]
    planned.model = (
        f"{name}, {found.facts.num_parameters / 1e6:,.1f} M parameters, {found.facts.num_trained / 1e6:,.1f} M trained"
    )
    if not found.phases:
        findings.warn(
            "memory", "the batches' lengths are not known (set `max_length`): memory in training is not planned."
        )
    _check_fit(findings, found, device)
    if plan is not None:
        _plan_disk(findings, planned, found, args, plan, model_args.use_peft, phases, lengths)
    return planned


def _check_fit(findings: Findings, found: Estimate, device: int | None) -> None:
    if device is None:
        return
    room = (1 - _RESERVED) * device
    for phase in found.phases:
        if phase.peak.total > room:
            findings.warn(
                "memory",
                f"{phase.name} needs about {phase.peak.total / GIB:.1f} GiB on each device ({phase.peak.name}); "
                f"{room / GIB:.1f} of {device / GIB:.0f} GiB are for tensors. Lower `per_device_train_batch_size` or "
                "`max_length`, turn `gradient_checkpointing` on, take LoRA, or shard over more devices (ZeRO-3, FSDP2).",
            )


def _plan_disk(
    findings: Findings,
    planned: Plan,
    found: Estimate,
    args: Any,
    plan: "RunPlan",
    is_adapter: bool,
    phases: list[PlannedPhase],
    lengths: Lengths | None,
) -> None:
    facts, placement = found.facts, planned.placement
    model = disk.saved_model_bytes(facts, placement, is_adapter)
    number = disk.num_checkpoints(args, plan)
    sizes = {
        f"{number} checkpoint{'s'[: number != 1]}": number * disk.checkpoint_bytes(facts, placement, args, is_adapter),
        "model": model,
        "rollouts": disk.rollout_bytes(phases) or 0,
    }
    if args.rollout_engine == "vllm":
        sizes["the policy that vLLM serves"] = model
    teacher = found.teacher
    is_known = teacher is not None or labels_elsewhere(args)
    if is_known and args.cache_teacher and lengths is not None and planned.data["rows"]:
        branches = 1 + sum(phase.rollout_rows != 0 for phase in phases)
        positions = round(planned.data["rows"] * lengths.mean_response * branches)
        sizes["soft labels"] = disk.soft_label_bytes(positions, teacher, args.teacher_top_k)
    planned.free_disk = free_bytes(args.output_dir)
    if found.state_bytes and lengths is not None and sum(phase.epochs for phase in phases if phase.iteration) > 1:
        size = disk.trunk_bytes(phases, lengths.mean_context + lengths.mean_response, found.state_bytes)
        if size <= SHARE_OF_DISK * planned.free_disk:
            sizes["frozen layers' output"] = size
        else:
            findings.warn(
                "disk",
                f"every step will run the frozen layers: their output would take {size / GIB:.1f} GiB, and at most half of the "
                f"{planned.free_disk / GIB:.1f} that are free at `output_dir: {args.output_dir}` is used.",
            )
    if getattr(args, "soft_labels", False):
        positions = sum(phase.rollout_tokens or 0 for phase in phases)
        sizes["soft labels"] = disk.soft_label_bytes(positions, facts, args.teacher_top_k)
    planned.disk = {name: size for name, size in sizes.items() if size}
    total = sum(planned.disk.values())
    if total > planned.free_disk:
        findings.warn(
            "disk",
            f"the run writes about {total / GIB:.1f} GiB; {planned.free_disk / GIB:.1f} are free at `output_dir: "
            f"{args.output_dir}` on this machine. Set `save_total_limit` or `save_only_model`, or another `output_dir`.",
        )
