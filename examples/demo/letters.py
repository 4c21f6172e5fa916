"""The mail of a small audio shop. Everybody in it is invented; `.example` is nobody's domain.

`letters.txt` has the ordinary ones. Those below show what else real mailboxes hold: HTML only, a reply in a
thread, legacy and wrong charsets, an attachment, no Message-ID, a truncated MIME structure.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

SHOP = "Kestrel Sound <hello@kestrel-sound.example>"
_FILE = Path(__file__).with_name("letters.txt")
_BETWEEN = "\n=====\n"
_STRIDE = 7

_QUOTE_REPLY = b"""\
From: Greg Fielding <greg.fielding@harbourhotel.example>
Subject: Re: RFQ: ceiling speakers x 48
In-Reply-To: <answer-1@kestrel-sound.example>
References: <letter-2@demo.example> <answer-1@kestrel-sound.example>

Thanks for the quick answer. Make it 52 speakers, and please quote for the installation as well.

Greg

On Thu, 12 Nov 2026 at 09:14, Kestrel Sound wrote:
> We are sorry that your last order arrived damaged. Your complaint was
> unacceptable to ignore, and a refund is on its way.
"""

_HTML_ONLY = b"""\
From: Zanele Botha <zanele@bothainteriors.example>
Subject: =?utf-8?Q?Home_cinema_=E2=80=93_can_you_quote=3F?=
MIME-Version: 1.0
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: quoted-printable

<html><head><style>p { color: #333 }</style><title>x</title></head><body>
<p>Hello,</p><p>a client of ours is looking for a <b>5.1 home cinema</b> in an 8&nbsp;=C3=97&nbsp;5&nbsp;m=
 room. Could you send a quotation, and say what is available before Christmas?</p>
<p>Kind regards,<br>Zanele</p></body></html>
"""

_LATIN_1 = b"""\
From: =?iso-8859-1?Q?J=FCrgen_Gr=F6=DFer?= <juergen@tonstudio-groesser.example>
Subject: =?iso-8859-1?Q?Kabell=E4nge_f=FCr_Studiomonitore?=
MIME-Version: 1.0
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: 8bit

Guten Tag, welche Kabell\xe4nge ist f\xfcr symmetrische Verbindungen noch unbedenklich?
Gr\xfc\xdfe, J\xfcrgen
"""

_SHIFT_JIS = (
    b"From: Sato <sato@kissa-blue.example>\nSubject: =?iso-2022-jp?B?GyRCJTklVCE8JSshPBsoQg==?=\n"
    b"MIME-Version: 1.0\nContent-Type: text/plain; charset=shift_jis\nContent-Transfer-Encoding: 8bit\n\n"
    + "スピーカーの修理について教えてください。".encode("shift_jis")
)

_WRONG_CHARSET = b"""\
From: Amelie Caf\xe9 <amelie@cafe-amelie.example>
Subject: Caf\xe9 terrace, outdoor speakers: your price?
MIME-Version: 1.0
Content-Type: text/plain; charset=x-unknown-9

How much are four weatherproof speakers for our terrace, \x80 or dollars? Please quote.
"""

_ATTACHMENT = b"""\
From: Rehan Malik <rehan@malikconstruction.example>
Subject: Pricing for conference room, drawing attached
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=sep

--sep
Content-Type: multipart/alternative; boundary=alt

--alt
Content-Type: text/plain; charset=utf-8

Please see the drawing and send us your pricing for table microphones and two screens.
--alt
Content-Type: text/html; charset=utf-8

<p>Please see the drawing and send us your pricing.</p>
--alt--
--sep
Content-Type: application/pdf; name="room-4.pdf"
Content-Disposition: attachment; filename="room-4.pdf"
Content-Transfer-Encoding: base64

JVBERi0xLjQKJcOkw7zDtsOfCg==
--sep--
"""

_WITHOUT_ID = b"""\
From: scanner@warehouse.example
Subject: Delivery note 88213

Delivery note for order 10472: 12 boxes, courier on the way. This message was sent by an old device.
"""

_BROKEN_OFF = b"""\
From: Lerato Sithole <lerato@sitholelaw.example>
Subject: Video calls: echo
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="never-closed"

--never-closed
Content-Type: text/plain; charset=utf-8

Could you help? Callers hear an echo since the last update of the conference unit.
--never-closed
Content-Type: image/png
Content-Transfer-Encoding: base64

iVBORw0KGgoAAAANSUhEUgAA
"""

_ODD = (
    _QUOTE_REPLY,
    _HTML_ONLY,
    _LATIN_1,
    _SHIFT_JIS,
    _WRONG_CHARSET,
    _ATTACHMENT,
    _WITHOUT_ID,
    _BROKEN_OFF,
)


def letters(now: datetime | None = None) -> list[bytes]:
    """All letters in mailbox order, oldest first, the ordinary and the odd ones mixed."""
    blocks = _FILE.read_text("utf-8").split(_BETWEEN)
    named = [(f"letter-{number}", block.encode()) for number, block in enumerate(blocks, start=1)]
    # The file is sorted by subject matter; a mailbox is not.
    mixed = [letter for first in range(_STRIDE) for letter in named[first::_STRIDE]]
    for number, odd in enumerate(_ODD):
        mixed.insert(3 + 4 * number, (f"odd-{number}", odd))
    newest = now or datetime.now(UTC)
    return [
        _posted(letter, name, newest - timedelta(minutes=17 * (len(mixed) - number)))
        for number, (name, letter) in enumerate(mixed)
    ]


def _posted(letter: bytes, name: str, date: datetime) -> bytes:
    """The letter with the headers that a mail server adds."""
    message_id = "" if letter is _WITHOUT_ID else f"Message-ID: <{name}@demo.example>\n"
    head = f"Date: {format_datetime(date)}\nTo: {SHOP}\n{message_id}".encode()
    return (head + letter.strip() + b"\n").replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
