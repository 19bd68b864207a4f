"""All benchmarks: `make bench`, or `python -m examples.benchmarks` from the repository. About 20 minutes on 2 cores."""

from . import distillation, joint_step, kd_loss, label, mix, sft_phase


for benchmark in (joint_step, label, mix, sft_phase, kd_loss, distillation):
    benchmark.main()
