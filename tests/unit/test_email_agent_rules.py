"""Classification of mail by rules, and drafts from templates."""

from __future__ import annotations

from email import message_from_bytes, policy

import pytest

from examples.demo.letters import letters
from examples.email_agent import drafts, message, rules

EXPECTED_COUNTS = {
    "quote_request": 11,
    "order": 6,
    "support": 5,
    "complaint": 4,
    "other": 4,
    "newsletter": 2,
    "spam": 2,
    "auto_reply": 1,
}


@pytest.mark.parametrize(
    ("subject", "text", "category"),
    [
        ("Quote please", "For two speakers.", "quote_request"),
        ("Speakers", "How much would four of them cost?", "quote_request"),
        ("PO 4711", "Please deliver by Friday.", "order"),
        ("Where is my order 10482?", "", "order"),
        ("My amplifier", "It arrived damaged. I want my money back.", "complaint"),
        ("Help", "The soundbar won't connect, there is no sound.", "support"),
        ("Hello", "We met on Tuesday.", "other"),
        ("You have won", "Claim the lottery prize money.", "spam"),
        ("", "", "other"),
    ],
)
def test_mail_is_classified_by_its_phrases(subject: str, text: str, category: str) -> None:
    assert rules.classify(subject, text).category == category


def test_phrase_in_the_subject_counts_twice() -> None:
    assert rules.classify("Quote", "Where is my order 1?").category == "quote_request"
    assert rules.classify("", "A quote. Where is my order 1?").category == "order"


def test_single_spam_phrase_is_not_spam() -> None:
    assert rules.classify("Quote", "Dear Sir, please quote for a microphone.").category == "quote_request"


def test_quoted_text_does_not_count() -> None:
    assert rules.classify("Speakers", "Please quote.\n> I want a refund, this is faulty").category == (
        "quote_request"
    )


def test_automatic_and_bulk_mail_is_classified_as_such() -> None:
    assert rules.classify("Quote", "", automatic=True).category == "auto_reply"
    assert rules.classify("Quote", "", bulk=True).category == "newsletter"
    assert rules.classify("You have won", "our lottery", bulk=True).category == "spam"


def test_reason_names_the_matching_phrases() -> None:
    assert rules.classify("Quote", "your price, a quote").reason == "says “Quote”, “your price”"
    assert rules.classify("Hi", "").reason == "no rule matches"


def test_demo_mails_are_classified_as_expected() -> None:
    counts: dict[str, int] = {}
    for letter in letters():
        mail = message.read(letter)
        verdict = rules.classify(mail.subject, mail.text, bulk=mail.bulk, automatic=mail.automatic)
        counts[verdict.category] = counts.get(verdict.category, 0) + 1
    assert counts == EXPECTED_COUNTS


# Drafts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("category", [*drafts.TEMPLATES, "something new"])
def test_every_category_gets_a_draft(category: str) -> None:
    text = drafts.from_template(
        category, "Re: AW: Two speakers", "Hello\n\nThanks,\nAnna", "Yours\nThe shop"
    )
    assert text.startswith("Hello Anna,\n\nthank you")
    assert text.endswith("\n\nYours\nThe shop")
    assert "{" not in text
    assert "Re:" not in text


@pytest.mark.parametrize(
    ("subject", "text", "found"),
    [
        ("PO-20418", "", "(po 20418)"),
        ("Purchase order PO-20418", "", "(purchase order PO-20418)"),
        ("Hello", "about order no. 10482, please", "(order 10482)"),
        ("Invoice #7731", "", "(invoice 7731)"),
        ("Hello", "I order 5 of them in 2026", None),
    ],
)
def test_draft_repeats_an_order_or_invoice_number(subject: str, text: str, found: str | None) -> None:
    draft = drafts.from_template("order", subject, text, "x")
    assert (found in draft) if found else ("(" not in draft)


@pytest.mark.parametrize("text", ["Thanks,\nAnna Berg", "bye\n\nKind regards\n\nAnna", "Regards,\r\nanna"])
def test_greeting_uses_the_name_in_the_signature(text: str) -> None:
    assert drafts.from_template("other", "x", message.read(b"\n" + text.encode()).text, "y").startswith(
        "Hello Anna,"
    )


def test_template_does_not_format_placeholders_in_the_mail() -> None:
    text = drafts.from_template("support", "{topic} {0.__class__}", "", "x")
    assert "“{topic} {0.__class__}”" in text


def test_draft_is_addressed_and_threaded_as_a_reply() -> None:
    payload = {
        "message_id": "<2@b.example>",
        "references": ["<1@b.example>"],
        "reply_to": "office@b.example",
    }
    draft = drafts.assemble("anna@b.example", "Re: RE: Hello", payload, "Text", "template")
    assert draft == drafts.Draft(
        to="office@b.example",
        subject="Re: Hello",
        text="Text\n",
        in_reply_to="<2@b.example>",
        references=("<1@b.example>", "<2@b.example>"),
        written_by="template",
    )
    mime = message_from_bytes(draft.as_mime("<d@x.invalid>"), policy=policy.default)
    assert (mime["To"], mime["In-Reply-To"]) == ("office@b.example", "<2@b.example>")
    assert mime["From"] is None


@pytest.mark.parametrize(
    ("category", "payload", "sender", "wanted"),
    [
        ("order", {}, "anna@b.example", True),
        ("spam", {}, "anna@b.example", False),
        ("newsletter", {}, "anna@b.example", False),
        ("auto_reply", {}, "anna@b.example", False),
        ("order", {"automatic": True}, "anna@b.example", False),
        ("order", {}, "unknown", False),
    ],
)
def test_only_mail_that_needs_an_answer_gets_a_draft(
    category: str, payload: dict[str, object], sender: str, wanted: bool
) -> None:
    assert drafts.wanted(category, payload, sender) is wanted
