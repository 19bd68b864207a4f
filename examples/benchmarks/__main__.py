"""All benchmarks: `make bench`, or `python -m examples.benchmarks` from the repository. About 20 minutes on 2 cores."""

from . import joint_step, label, mix, sft_phase


for benchmark in (joint_step, label, mix, sft_phase):
    benchmark.main()
