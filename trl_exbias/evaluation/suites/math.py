r"""MATH, zero-shot with a chain of thought: the same string in `\boxed{…}`, and math-verify."""

from ...grading.answers import boxed_answer
from ..figures import Figure
from ..grading import Grading, Outcome, accuracy, grade_math
from ..subject import Sampling
from ..work import Work
from .graded import without_answer
from .suite import Suite


def grade_exact(completion: str, gold_answer: str) -> Grading:
    r"""The same string in `\boxed{…}`, except for spaces: strict, and blind to equal mathematics written otherwise."""
    gold, answer = boxed_answer(gold_answer) or gold_answer, boxed_answer(completion)
    if answer is None:
        return Grading(Outcome.UNPARSEABLE_ANSWER, gold=gold)
    equal = "".join(answer.split()) == "".join(gold.split())
    return Grading(Outcome.CORRECT if equal else Outcome.WRONG, answer, gold)


def _figures(work: Work) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for name, grade in (("math_exact", grade_exact), ("math_verify", grade_math)):
        gradings = {
            item.id: [grade(each[item.id].text, item.references[0]) for each in work.repetitions] for item in work.items
        }
        found[name] = accuracy(name, gradings, work.settings())
        found[f"{name}_no_answer"] = without_answer(f"{name}_no_answer", gradings, work.settings())
    return found


SUITE = Suite(
    name="math",
    figures=_figures,
    data=("HuggingFaceH4/MATH-500", None, "test"),
    prompt_template="{{ problem }}\n\nLet's think step by step. Put the final answer within \\boxed{}.",
    completion_template="{{ answer }}",
    as_conversation=True,
    sampling=Sampling(temperature=0.1, num_generations=3, max_new_tokens=1024),
    takes_text=False,
    packages={"math_verify": "eval"},
)
