"""Verifiers of a user's own, as the tests name them."""


def long(answer: str, gold: str, row: dict) -> bool:
    """Gold answers are longer than that, and about half of a random model's."""
    return len(answer) > 1


def unsure(answer: str, gold: str, row: dict) -> str:
    return "no"


NOTHING = 3
