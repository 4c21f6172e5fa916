"""The visible text of an HTML mail."""

from __future__ import annotations

import re
from contextlib import suppress
from html.parser import HTMLParser

_UNSEEN = frozenset({"script", "style", "head", "title", "template", "noscript"})
_BLOCKS = frozenset(
    {"address", "article", "blockquote", "br", "dd", "div", "dl", "dt", "footer", "form", "h1", "h2", "h3"}
    | {"h4", "h5", "h6", "header", "hr", "li", "ol", "p", "pre", "section", "table", "td", "th", "tr", "ul"}
)
_LINE_SPACE = re.compile(r"[ \t\r\f\v\xa0]+")
_SPACE_AROUND_BREAK = re.compile(r" ?\n ?")
_MANY_BREAKS = re.compile(r"\n{3,}")


def text_of(html: str) -> str:
    """The text of a document, one line per block; of a broken document, the text up to the break."""
    reader = _Reader()
    # An unterminated tag is not a tag. The parser would search for its end again from each "<".
    end = html.rfind(">") + 1
    # The parser raises this on declarations that it cannot parse.
    with suppress(AssertionError):
        reader.feed(html[:end] + html[end:].partition("<")[0])
        reader.close()
    text = _LINE_SPACE.sub(" ", "".join(reader.pieces))
    return _MANY_BREAKS.sub("\n\n", _SPACE_AROUND_BREAK.sub("\n", text)).strip()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._unseen: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if self._unseen is None and tag in _UNSEEN:
            self._unseen = tag
        # A head that is never closed must not hide the body.
        elif self._unseen in ("head", "title") and tag == "body":
            self._unseen = None
        if tag in _BLOCKS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._unseen:
            self._unseen = None
        if tag in _BLOCKS and tag != "br":
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if self._unseen is None:
            self.pieces.append(data.replace("\n", " "))
