"""All benchmarks: `make bench`, or `python -m examples.benchmarks` from the repository. About half an hour on 2 cores."""

from . import distillation, joint_step, kd_loss, label, memory_plan, mix, sft_phase, vllm_rollouts


for benchmark in (joint_step, label, mix, sft_phase, kd_loss, distillation, vllm_rollouts, memory_plan):
    benchmark.main()
