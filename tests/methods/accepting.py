"""Verifiers of a user's own, as the tests name them."""

import string


def long(answer: str, gold: str, row: dict) -> bool:
    """Gold answers are longer than that, and about half of a random model's."""
    return len(answer) > 1


def without_capitals(answer: str, gold: str, row: dict) -> bool:
    """Gold, and whatever stands before a capital."""
    return answer == gold or set(string.ascii_uppercase).isdisjoint(answer)


def unsure(answer: str, gold: str, row: dict) -> str:
    return "no"


NOTHING = 3
