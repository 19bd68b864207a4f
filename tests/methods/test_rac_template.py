import pytest

from trl_exbias.methods.rac_template import CorrectionTemplate, without_system_role


def test_the_papers_summarization_template():
    """Cen 2024, App. A.1."""
    assert CorrectionTemplate("summarization").render_text("A post.", "A summary.") == (
        "[POST]: A post.\n"
        "[REFERENCE SUMMARY]: A summary.\n"
        "Re-write a new summary of the post and cover the main content in the reference summary.\n"
        "TL;DR:"
    )


def test_the_papers_qa_template():
    """Cen 2024, App. A.1, its roles made by the model's own chat template."""
    assert CorrectionTemplate("qa").render_messages([{"role": "user", "content": "Why?"}], "Because.") == [
        {
            "role": "system",
            "content": "You are a helpful assistant to answer user's question. Your will be given both a question and "
            "reference response. You need to give a new response to the question and contain the main content in the "
            "reference response.",
        },
        {"role": "user", "content": "Why? Answer this question based on the following reference response: Because."},
    ]


def test_the_reference_stands_in_the_last_user_turn():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1."},
        {"role": "user", "content": "Two?"},
    ]
    rendered = CorrectionTemplate("qa").render_messages(messages, "2.")
    assert [m["role"] for m in rendered] == ["system", "user", "assistant", "user"]
    assert rendered[0]["content"].startswith("Be brief.\n\nYou are a helpful assistant")
    assert rendered[1:3] == messages[1:3]
    assert rendered[3]["content"] == "Two? Answer this question based on the following reference response: 2."
    assert messages[3]["content"] == "Two?", "the caller's messages are not touched"


def test_a_template_without_blocks_is_the_user_turn():
    template = CorrectionTemplate("Q: {{ prompt }} R: {{ reference }}\n")
    assert template.render_messages([{"role": "user", "content": "a"}], "b") == [
        {"role": "user", "content": "Q: a R: b\n"}
    ]


def test_a_template_of_ones_own_by_path(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ prompt }}/{{ reference }}")
    assert CorrectionTemplate(str(path)).render_text("x", "y") == "x/y"


def test_markup_in_the_data_is_not_executed():
    template = CorrectionTemplate("{{ prompt }} {{ reference }}")
    assert template.render_text("{{ 7 * 7 }}", "{% for %}") == "{{ 7 * 7 }} {% for %}"


def test_the_sandbox_holds():
    template = CorrectionTemplate("{{ prompt }} {{ reference }} {{ prompt.__class__.__mro__ }}")
    with pytest.raises(Exception, match="unsafe|undefined"):
        template.render_text("x", "y")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ prompt }} only", "does not mention `{{ reference }}`"),
        ("{{ reference }} only", "does not mention `{{ prompt }}`"),
        ("neither\n", "does not mention `{{ prompt }}` and `{{ reference }}`"),
        ("{{ prompt }} {% if reference %}", "is not valid jinja: .*line 1"),
        ("{{ prompt }} {{ reference }} {{ answer }}", r"uses unknown variables \['answer'\]"),
        ("{% block ask %}{{ prompt }}{{ reference }}{% endblock %}", "there must be one named `user`"),
        ("summarisation", "neither one of 'qa', 'summarization', nor an existing file"),
    ],
)
def test_templates_that_cannot_work_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        CorrectionTemplate(source)


def test_a_conversation_without_a_user_turn_is_refused():
    with pytest.raises(ValueError, match="needs a user turn"):
        CorrectionTemplate("qa").render_messages([{"role": "assistant", "content": "Hi."}], "x")


def test_the_system_text_can_open_the_user_turn():
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert without_system_role(messages) == [{"role": "user", "content": "S\n\nU"}]
    assert without_system_role(messages[1:]) == messages[1:]
