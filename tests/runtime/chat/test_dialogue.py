"""The history of a conversation, and what commands do to it."""

from __future__ import annotations

from expertflow.runtime.chat.dialogue import Dialogue


def talk(dialogue: Dialogue, *texts: str) -> None:
    for place, text in enumerate(texts):
        (dialogue.answer if place % 2 else dialogue.ask)(text)


def test_messages_are_those_of_the_template() -> None:
    dialogue = Dialogue("Be brief.")
    talk(dialogue, "a", "b", "c")
    assert [(message["role"], message["content"]) for message in dialogue.messages] == [
        ("system", "Be brief."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    assert dialogue.show() == "system: Be brief.\nuser: a\nassistant: b\nuser: c\n"
    assert Dialogue().messages == []


def test_a_question_is_undone_with_its_answer() -> None:
    """An open question alone: its answer failed."""
    dialogue = Dialogue()
    talk(dialogue, "a", "b", "c")
    assert (dialogue.undo(), len(dialogue.messages)) == ("c", 2)
    assert (dialogue.undo(), dialogue.messages) == ("a", [])
    assert dialogue.undo() == ""


def test_a_new_beginning_keeps_the_system_message_or_sets_it() -> None:
    dialogue = Dialogue("old")
    talk(dialogue, "a", "b")
    dialogue.clear()
    assert [message["content"] for message in dialogue.messages] == ["old"]
    talk(dialogue, "a")
    dialogue.set_system("new")
    assert [message["content"] for message in dialogue.messages] == ["new"]
