"""Parsing mail: ordinary, broken and hostile."""

from __future__ import annotations

import json
from time import process_time

import pytest

from examples.demo.letters import letters
from examples.email_agent import message
from examples.email_agent.drafts import from_template
from examples.email_agent.html_text import text_of

MAX_CPU_SECONDS = 2.0
"""For the worst mail: far more than it takes, and far less than quadratic time would take."""


def read(*lines: bytes) -> message.Mail:
    return message.read(b"\r\n".join(lines))


def test_ordinary_mail_is_parsed() -> None:
    mail = read(
        b"From: Anna Berg <anna@customer.example>",
        b"To: Shop <hello@shop.example>, sales@shop.example",
        b"Subject: Two speakers",
        b"Date: Mon, 23 Nov 2026 10:00:00 +0200",
        b"Message-ID: <1@customer.example>",
        b"References: <0@shop.example>",
        b"In-Reply-To: <0@shop.example>",
        b"Reply-To: office@customer.example",
        b"",
        b"Hello,",
        b"how much?",
    )
    assert mail.from_email == "anna@customer.example"
    assert mail.subject == "Two speakers"
    assert mail.text == "Hello,\nhow much?"
    assert mail.payload() == {
        "text": "Hello,\nhow much?",
        "date": "2026-11-23T08:00:00+00:00",
        "to": ["hello@shop.example", "sales@shop.example"],
        "reply_to": "office@customer.example",
        "message_id": "<1@customer.example>",
        "references": ["<0@shop.example>"],
    }


def test_html_only_mail_becomes_text() -> None:
    mail = read(
        b"From: a@b.example",
        b"Content-Type: text/html; charset=utf-8",
        b"Content-Transfer-Encoding: quoted-printable",
        b"",
        b"<style>p {}</style><p>Gr=C3=BC=C3=9Fe<br>aus&nbsp;Wien</p><script>x()</script>",
    )
    assert mail.text == "Grüße\naus Wien"


def test_plain_text_is_preferred_to_html_and_attachments_are_named() -> None:
    mail = read(
        b"From: a@b.example",
        b"Content-Type: multipart/mixed; boundary=x",
        b"",
        b"--x",
        b"Content-Type: text/html",
        b"",
        b"<p>html</p>",
        b"--x",
        b"Content-Type: text/plain",
        b"",
        b"plain",
        b"--x",
        b"Content-Type: text/plain",
        b"Content-Disposition: attachment; filename*=utf-8''Gr%C3%B6%C3%9Fe.txt",
        b"",
        b"attached",
        b"--x--",
    )
    assert (mail.text, mail.attachments) == ("plain", ("Größe.txt",))


@pytest.mark.parametrize(
    ("charset", "raw", "text"),
    [
        ("iso-8859-1", b"Gr\xfc\xdfe", "Grüße"),
        ("utf-8", "Grüße".encode(), "Grüße"),
        ("utf-8", b"Gr\xfc\xdfe", "Grüße"),  # mislabelled
        ("x-nobody-knows", b"caf\xe9 \x80", "café €"),
        ("shift_jis", "音".encode("shift_jis"), "音"),
        ("idna", b"plain", "plain"),
        ("hex", b"plain", "plain"),
        ("utf-8", "zwölf Grüß".encode()[:-1], "zwölf Grü"),  # truncated within a character
        ("utf-8", b"a\x00b\x07c", "a b c"),
    ],
)
def test_text_is_decoded_whatever_its_charset(charset: str, raw: bytes, text: str) -> None:
    mail = read(b"From: a@b.example", f"Content-Type: text/plain; charset={charset}".encode(), b"", raw)
    assert mail.text == text


@pytest.mark.parametrize(
    ("raw", "subject"),
    [
        (b"=?utf-8?Q?Gr=C3=BC=C3=9Fe?= and more", "Grüße and more"),
        (b"=?iso-2022-jp?B?GyRCJTklVCE8JSshPBsoQg==?=", "スピーカー"),
        (b"caf\xe9", "café"),
        (b"=?x-nobody-knows?Q?caf=E9?=", "café"),
        (b"=?utf-8?B?not base64!?=", "=?utf-8?B?not base64!?="),
        (b"folded\r\n over two lines", "folded over two lines"),
        (b"=?utf-8?Q?two=0Alines=00?=", "two lines"),
    ],
)
def test_subject_is_decoded(raw: bytes, subject: str) -> None:
    assert read(b"From: a@b.example", b"Subject: " + raw, b"", b"").subject == subject


@pytest.mark.parametrize(
    ("raw", "address"),
    [
        (b'"Berg, Anna" <anna@b.example>', "anna@b.example"),
        (b"=?utf-8?Q?J=C3=BCrgen?= <j@b.example>", "j@b.example"),
        (b"anna@b.example (Anna)", "anna@b.example"),
        (b"Anna [at] nowhere <<anna@b.example>", "anna@b.example"),
        ("Zoë <zoë@bücher.example>".encode(), "zoë@bücher.example"),
        (b"Zo\xeb <zoe@b.example>", "zoe@b.example"),
        (b"undisclosed", "unknown"),
        (b"", "unknown"),
    ],
)
def test_sender_address_is_extracted(raw: bytes, address: str) -> None:
    assert read(b"From: " + raw, b"", b"").from_email == address


@pytest.mark.parametrize(
    "date", [b"yesterday", b"Mon, 99 Foo 2026 99:99:99 +9999", b"", b"=?utf-8?B?AA==?="]
)
def test_invalid_date_is_left_out(date: bytes) -> None:
    assert read(b"From: a@b.example", b"Date: " + date, b"", b"").date is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff\xfe" * 100,
        b"no header at all",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: text/plain\r\n\r\nbroken",
        b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\nSGVsbG8",
        b"Content-Type: text/plain; charset*=x'y'%FF\r\n\r\ntext",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" * 500,
        b"Subject: " + b"=?utf-8?Q?a?= " * 5_000,
        b"From: " + b"<" * 10_000 + b"\r\n\r\n",
        b"Content-Type: message/rfc822\r\n\r\n" * 2_000,
    ],
    ids=range(10),
)
def test_broken_mail_is_parsed_and_can_be_stored(raw: bytes) -> None:
    mail = message.read(raw)
    stored = json.dumps([mail.from_email, mail.subject, mail.payload()], ensure_ascii=False)
    assert "\x00" not in stored
    stored.encode()
    assert mail.from_email
    assert 1 <= len(mail.external_id(None)) <= 255


def test_long_text_and_subject_are_truncated() -> None:
    mail = read(b"From: a@b.example", b"Subject: " + b"s" * 5_000, b"", b"t" * 100_000)
    assert len(mail.text) == message.EXCERPT_CHARACTERS
    assert mail.text.endswith("…")
    assert len(mail.subject) == message.SUBJECT_CHARACTERS


def test_external_id_is_the_gmail_id_the_message_id_or_a_hash_of_the_header() -> None:
    with_id = read(b"Message-ID: <1@b.example>", b"", b"x")
    without = read(b"Subject: a", b"", b"x")
    assert with_id.external_id(None) == "<1@b.example>"
    assert with_id.external_id(1_278_455_344_230_334_865) == "11bdfc5cae0c8191"
    assert without.external_id(None) == read(b"Subject: a", b"", b"only the body differs").external_id(None)
    assert without.external_id(None) != read(b"Subject: b", b"", b"x").external_id(None)


def test_bulk_and_automatic_mail_is_recognized_by_its_headers() -> None:
    assert read(b"List-Unsubscribe: <https://x.example>", b"", b"").bulk
    assert read(b"Precedence: Bulk", b"", b"").bulk
    assert read(b"Auto-Submitted: auto-replied", b"", b"").automatic
    assert not read(b"Auto-Submitted: no", b"", b"").automatic


@pytest.mark.parametrize("line", ["On Mon, 23 Nov 2026 Anna wrote:", "-----Original Message-----"])
def test_quoted_text_is_removed_unless_it_is_everything(line: str) -> None:
    assert message.without_quotes(f"Yes.\n> Really?\n\n{line}\n> I complain") == "Yes."
    assert message.without_quotes("> only\n> quoted") == "> only\n> quoted"


def test_broken_html_still_gives_its_text() -> None:
    assert text_of("<p>one<p>two<b>three</p></div>&amp;&nope;<!-- x").startswith("one\ntwothree")
    assert text_of("<head><title>unseen<body>seen</body>") == "seen"
    assert text_of("<table><tr><td>a</td><td>b</td></tr></table>").split() == ["a", "b"]


def test_demo_mails_have_distinct_ids() -> None:
    mails = [message.read(letter) for letter in letters()]
    assert len({mail.external_id(None) for mail in mails}) == len(mails)
    assert all(mail.text and mail.subject and "@" in mail.from_email for mail in mails)
    assert sum(mail.message_id is None for mail in mails) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"From: " + b"a" * 60_000 + b"\r\n\r\nhello",
        b'Content-Type: text/plain; charset="' + b";" * 80_000 + b"\r\n\r\nhello",
        b"Content-Type: text/html\r\n\r\nhello" + b"<div " * 15_000,
        b"Content-Type: text/html\r\n\r\nhello" + b"<a b='" * 15_000,
    ],
    ids=["endless address", "endless parameter", "unclosed tags", "unclosed quotes"],
)
def test_hostile_mail_is_parsed_quickly(raw: bytes) -> None:
    start = process_time()
    assert read(raw).text.startswith("hello")
    assert process_time() - start < MAX_CPU_SECONDS


@pytest.mark.parametrize("text", ["regards" + "\n" * 1_200 + "1", "order" + " #-:" * 2_500])
def test_hostile_mail_is_answered_quickly(text: str) -> None:
    start = process_time()
    assert from_template("other", "hi", text, "us").startswith("Hello,")
    assert process_time() - start < MAX_CPU_SECONDS


def test_unknown_markup_hides_only_the_text_after_it() -> None:
    mail = read(b"From: a@b.example\r\nContent-Type: text/html\r\n\r\n<p>hello</p><![<b>there</b>")
    assert (mail.from_email, mail.text) == ("a@b.example", "hello")


def test_text_before_an_unfinished_tag_is_kept() -> None:
    assert text_of("<p>one</p>two <b") == "one\ntwo"
