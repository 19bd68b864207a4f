"""GSM8K, zero-shot with a chain of thought: the official exact match, the final number anywhere, and math-verify."""

from ..figures import Figure
from ..grading import GSM8K_METHODS, accuracy, grade_gsm8k
from ..subject import Sampling
from ..work import Work
from .graded import without_answer
from .suite import Suite


def _figures(work: Work) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for method in GSM8K_METHODS:
        gradings = {
            item.id: [grade_gsm8k(each[item.id].text, item.references[0], method) for each in work.repetitions]
            for item in work.items
        }
        name = f"gsm8k_{method}"
        found[name] = accuracy(name, gradings, work.settings())
        # Where it is high, the model does not write what this grader reads: not the same as computing wrongly.
        found[f"{name}_no_answer"] = without_answer(f"{name}_no_answer", gradings, work.settings())
    return found


SUITE = Suite(
    name="gsm8k",
    figures=_figures,
    data=("openai/gsm8k", "main", "test"),
    prompt_template="{{ question }}\n\nLet's think step by step. End with the answer alone on a line, as #### NUMBER.",
    completion_template="{{ answer }}",
    as_conversation=True,
    sampling=Sampling(temperature=0.1, num_generations=3, max_new_tokens=512),
    takes_text=False,
    packages={"math_verify": "eval"},
)
