"""All benchmarks: `make bench`, or `python -m examples.benchmarks` from the repository. About 50 minutes on 2 cores."""

from . import (
    distillation,
    frozen_trunk,
    joint_step,
    kd_loss,
    label,
    memory_plan,
    mix,
    packed_step,
    preferences,
    sample,
    scheduled_sampling,
    sft_phase,
    two_processes,
    vllm_rollouts,
)


for benchmark in (
    joint_step,
    packed_step,
    preferences,
    label,
    mix,
    sample,
    sft_phase,
    kd_loss,
    distillation,
    frozen_trunk,
    vllm_rollouts,
    memory_plan,
    two_processes,
    scheduled_sampling,
):
    benchmark.main()
