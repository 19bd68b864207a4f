"""A small data set of arithmetic word problems with worked answers, made from a seed, whose answers can be verified."""

import random
import re

from datasets import Dataset


_NAMES = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Femi", "Grace", "Hugo", "Ines", "Jun", "Kofi", "Lena")
_THINGS = ("apples", "books", "coins", "eggs", "marbles", "pencils", "shells", "stamps", "stickers", "tickets")
_BOXES = ("bags", "boxes", "baskets", "jars", "rows", "trays")
_ANSWER = re.compile(r"-?\d[\d,]*")
_CALCULATION = re.compile(r"\d+ [-+*] \d+ = -?\d+")


def word_problems(num_rows: int, seed: int) -> Dataset:
    """
    Conversational prompt-completion rows with a worked answer that ends in `#### <number>`, and the column `answer`.

    Args:
        num_rows (`int`): How many; no question occurs twice.
        seed (`int`): Equal seeds give equal rows; the held-out set of a demo has another.
    """
    generator = random.Random(seed)
    rows: dict[str, dict] = {}
    while len(rows) < num_rows:
        question, solution, answer = generator.choice((_gain_and_loss, _groups, _difference))(generator)
        rows[question] = {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": f"{solution}\n#### {answer}"}],
            "answer": answer,
        }
    return Dataset.from_list(list(rows.values()))


def is_correct(response: str, answer: int) -> bool:
    """Whether the last number of a response is the answer."""
    numbers = _ANSWER.findall(response)
    return bool(numbers) and int(numbers[-1].replace(",", "")) == answer


def right_calculations(response: str, solution: str) -> int:
    """How many of the solution's calculations (two in each) a response has, with their results."""
    return len({*_CALCULATION.findall(solution)} & {*_CALCULATION.findall(response)})


def _gain_and_loss(generator: random.Random) -> tuple[str, str, int]:
    name, thing = generator.choice(_NAMES), generator.choice(_THINGS)
    start, gain = generator.randint(5, 40), generator.randint(2, 20)
    loss = generator.randint(1, start)
    total = start + gain
    return (
        f"{name} has {start} {thing}, finds {gain} more and gives {loss} away. How many {thing} are left?",
        f"{name} has {start} + {gain} = {total} {thing}. After giving {loss} away, {total} - {loss} = {total - loss} are left.",
        total - loss,
    )


def _groups(generator: random.Random) -> tuple[str, str, int]:
    name, thing, box = generator.choice(_NAMES), generator.choice(_THINGS), generator.choice(_BOXES)
    groups, each, extra = generator.randint(2, 9), generator.randint(2, 9), generator.randint(1, 15)
    product = groups * each
    return (
        f"{name} fills {groups} {box} with {each} {thing} each and has {extra} {thing} over. How many {thing} are there?",
        f"The {box} hold {groups} * {each} = {product} {thing}. With the rest, {product} + {extra} = {product + extra}.",
        product + extra,
    )


def _difference(generator: random.Random) -> tuple[str, str, int]:
    first, second = generator.sample(_NAMES, 2)
    thing, less, more = generator.choice(_THINGS), generator.randint(3, 25), generator.randint(2, 20)
    other = less + more
    return (
        f"{first} has {less} {thing}. {second} has {more} more than {first}. How many {thing} do they have together?",
        f"{second} has {less} + {more} = {other} {thing}. Together they have {less} + {other} = {less + other}.",
        less + other,
    )
