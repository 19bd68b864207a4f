from datetime import datetime

import pytest

from trl_exbias.chat.pinned_date import pinned

from ..tiny import byte_tokenizer, published_template, tokenizer_of


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
MOMENT = datetime(2021, 3, 4, 15, 6, 7)


@pytest.mark.parametrize("name", ["gptoss", "llama3_2", "muse_glimmer"])
def test_only_the_date_changes(name):
    tokenizer = tokenizer_of(published_template(name), bos="<|pad|>")
    then = tokenizer.apply_chat_template(
        MESSAGES, tokenize=False, chat_template=pinned(tokenizer.chat_template, MOMENT)
    )
    now = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    today = datetime.now()
    assert then != now
    for form in ("%Y-%m-%d", "%d %b %Y"):
        then = then.replace(MOMENT.strftime(form), today.strftime(form))
    assert then == now


@pytest.mark.parametrize(
    "form", ["%Y-%m-%d", "%d %B %Y", "%A, %-d. %b %y %H:%M:%S %p", "%j %U", "day %d of %m", "%Y%m%d"]
)
def test_any_format_is_that_of_strftime(form):
    template = pinned(f"  {{%- set x = strftime_now({form!r}) %}}\n{{{{ x }}}}\n", MOMENT)
    assert byte_tokenizer(template).apply_chat_template(MESSAGES, tokenize=False) == MOMENT.strftime(form)


def test_a_template_without_a_date_is_left_alone_and_one_that_is_pinned_stays_so():
    assert pinned("{{ messages }}", MOMENT) == "{{ messages }}"
    assert pinned(None, MOMENT) is None
    template = pinned("{{ strftime_now('%d') }}", MOMENT)
    assert pinned(template, datetime.now()) == template
