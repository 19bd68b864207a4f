"""The tables that the demo ends with."""

from pathlib import Path


def print_table(results: dict, num_held_out: int) -> None:
    before = results["before"]
    print(
        f"\nHeld-out, {num_held_out} word problems, before → after (nats/token; accuracy: greedy answers, exact number)\n"
    )
    print(f"{'method':<8}{'teacher-forced CE':>22}{'free-running CE':>22}{'accuracy':>20}")
    for name, after in results.items():
        if name != "before":
            was, now = before.cross_entropy, after.cross_entropy
            print(
                f"{name:<8}"
                f"{f'{was.teacher_forced:.3f} → {now.teacher_forced:.3f}':>22}"
                f"{f'{was.free_running:.2f} → {now.free_running:.2f}':>22}"
                f"{f'{before.accuracy:.0%} → {after.accuracy:.0%}':>20}"
            )
    print(
        "\nFree-running CE scores the one written answer after the model's own words of the same length: compare it between\n"
        "models, and read it together with teacher-forced CE. It is not zero for a perfect model (docs/metrics.md)."
    )


def print_exposure_bias(reports: dict, plot: Path) -> None:
    steps = len(next(iter(reports.values())).gap)
    print(f"\nDaD-DAgger's student, {steps} steps of free running on held-out text [95 % interval] (nats/token)\n")
    names = ("teacher_forced", "free_running", "gap")
    print(" " * 27 + "".join(f"{name.replace('_', '-'):>22}" for name in names))
    for stage, report in reports.items():
        cells = (f"{t.mean:.2f} [{t.low:.2f}, {t.high:.2f}]" for t in (report.totals[name] for name in names))
        print(f"{stage:<27}" + "".join(f"{cell:>22}" for cell in cells))
    print(f"Plot over the steps: {plot}")
