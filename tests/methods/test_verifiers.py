import pytest

from trl_exbias.core.errors import UsageTypeError
from trl_exbias.methods.verifiers import accepts, check_verifier, find_verifier

from ..tiny import byte_tokenizer, conversations, plain_pairs


@pytest.mark.parametrize(
    ("source", "answer", "gold", "right"),
    [
        ("exact", " It is\n 4 ", "It is 4", True),
        ("exact", "It is 5", "It is 4", False),
        ("gsm8k", "2 + 2 = 4\n#### 4", "Two and two.\n#### 4", True),
        ("gsm8k", "The answer is 4.", "#### 4", False),
        ("number", "The answer is 1,004.", "#### 1004", True),
        ("number", "The answer is 4.", "#### 5", False),
        ("number", "The answer is 4.", "four", False),
        (r"regex:it is (\d+)", "first it is 3, no: it is 4", "it is 4", True),
        (r"regex:it is (\d+)", "it is 4, no: it is 3", "it is 4", False),
        (r"regex:\d+", "4 and 5", "5", True),
        (r"regex:\d+", "none", "none", False),
        ("tests.methods.accepting:long", "yes", "", True),
    ],
)
def test_what_is_accepted(source, answer, gold, right):
    assert accepts(find_verifier(source), answer, gold, {}) is right


def test_mathematics_is_compared_as_such():
    pytest.importorskip("math_verify")
    verifies = find_verifier("math")
    assert accepts(verifies, r"so it is \boxed{\frac{2}{4}}", r"\boxed{0.5}", {})
    assert not accepts(verifies, r"so it is \boxed{\frac{1}{4}}", r"\boxed{0.5}", {})


def test_none_keeps_all():
    assert find_verifier("none") is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("right", "`verifier` must be one of none, exact, gsm8k, number, math, 'regex:PATTERN', or 'module:function'"),
        (7, "got 7"),
        ("regex:(", r"`verifier='regex:\('` is not a regular expression"),
        ("no_such_module:f", "there is no module `no_such_module`"),
        ("tests.methods.accepting:nothing", "has no `nothing`"),
        ("tests.methods.accepting:NOTHING", "names a int, not a function"),
    ],
)
def test_what_is_no_verifier_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        find_verifier(source)


def test_a_function_that_returns_no_bool_is_an_error():
    with pytest.raises(UsageTypeError, match="must return a bool, it returned 'no'"):
        accepts(find_verifier("tests.methods.accepting:unsure"), "a", "b", {})


@pytest.mark.parametrize("data", [conversations, plain_pairs])
def test_gold_answers_are_held_against_themselves(data):
    check_verifier("number", data(6), byte_tokenizer())
    check_verifier("none", data(6), byte_tokenizer())
    with pytest.raises(ValueError, match="`verifier='regex:none'` accepts 0 of the first 6 gold answers"):
        check_verifier("regex:none", data(6), byte_tokenizer())
