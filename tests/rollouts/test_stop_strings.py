"""Stop strings against the plain definition: the first token after which the decoded response contains one."""

import random

import pytest

from trl_exbias.rollouts import SamplingOptions, StopStrings

from ..tiny import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_a_response_is_cut_after_the_token_that_completes_a_string(tokenizer):
    """Strings of one byte and of several, of a character that is several tokens, of a special token; overlapping ones."""
    strings = ["aab", "\n\n", "é!", "<|im_start|>"]
    found, draw = StopStrings(tokenizer, strings), random.Random(0)
    pieces = [*tokenizer.encode("ab\né!"), tokenizer.convert_tokens_to_ids("<|im_start|>")]
    lengths = set()
    for _ in range(300):
        response = draw.choices(pieces, k=draw.randint(1, 12))
        prefixes = [response[:stop] for stop in range(1, len(response) + 1)]
        ends = [any(string in tokenizer.decode(prefix) for string in strings) for prefix in prefixes]
        expected = prefixes[ends.index(True)] if True in ends else response
        assert found.cut(response) == expected
        # Later tokens may complete another one: asked is whether the last one does.
        assert found.end([expected]) == [True in ends]
        lengths.add(len(expected) - len(response))
    assert len(lengths) > 5


def test_what_was_said_is_what_stands_before_the_string(tokenizer):
    found = StopStrings(tokenizer, ["Q:", "\n"])
    assert found.said(tokenizer.encode("Yes. Q:")) == tokenizer.encode("Yes. ")
    assert found.said(whole := tokenizer.encode("Yes. Q")) is whole
    assert found.said(tokenizer.encode("Q:")) == []
    assert found.text_before("Yes. Q: No?\n") == "Yes. " and found.text_before("Yes.") == "Yes."


def test_a_response_has_ended_by_itself_with_a_token_or_a_string(tokenizer):
    options = SamplingOptions(stop_token_ids=(5,), stop_strings=StopStrings(tokenizer, ["Q:"]))
    responses = [[7, 5], tokenizer.encode("Yes. Q:"), [5, 7], []]
    assert [options.ended(response) for response in responses] == [True, True, False, False]


@pytest.mark.parametrize("strings", ["Q:", [], [""], [3]])
def test_what_is_not_a_list_of_strings_is_refused(tokenizer, strings):
    with pytest.raises(ValueError, match="`stop_strings` must be a list of strings, none of them empty, got "):
        StopStrings(tokenizer, strings)
