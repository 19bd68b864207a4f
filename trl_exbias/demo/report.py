"""The tables that the demo ends with."""

from pathlib import Path


def print_table(results: dict, num_held_out: int) -> None:
    """What was measured of each method's model (`demo.measure`), next to what it was before."""
    before = results["before"]
    print(f"\nHeld-out, {num_held_out} word problems, greedy answers, before → after\n")
    print(f"{'method':<8}{'teacher-forced CE':>22}{'right calculations, of 2':>28}{'accuracy':>20}")
    for name, after in results.items():
        if name != "before":
            print(
                f"{name:<8}"
                f"{f'{before.teacher_forced:.3f} → {after.teacher_forced:.3f}':>22}"
                f"{f'{before.calculations:.2f} → {after.calculations:.2f}':>28}"
                f"{f'{before.accuracy:.0%} → {after.accuracy:.0%}':>20}"
            )


def print_exposure_bias(reports: dict, plot: Path) -> None:
    """How far the student is from its teacher on states of its own, stage by stage."""
    steps = len(next(iter(reports.values())).gap)
    print(
        f"\nDaD-DAgger's student: KL from its teacher over {steps} steps of held-out text [95 % interval] (nats/token)\n"
    )
    titles = {"kl_own": "own states", "kl_gold": "true states", "excess_error": "excess"}
    print(" " * 27 + "".join(f"{title:>22}" for title in titles.values()))
    for stage, report in reports.items():
        cells = (f"{t.mean:.2f} [{t.low:.2f}, {t.high:.2f}]" for t in (report.totals[name] for name in titles))
        print(f"{stage:<27}" + "".join(f"{cell:>22}" for cell in cells))
    print(f"Plot over the steps: {plot}")
