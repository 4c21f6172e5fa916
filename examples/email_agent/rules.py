r"""Classifies mail without a language model, by simple rules.

1. Sent automatically (`Auto-Submitted`): `auto_reply`.
2. At least two spam phrases: `spam`.
3. Sent to many (`List-Unsubscribe`, `List-Id`, `Precedence: bulk`): `newsletter`.
4. Otherwise the category with the most matching phrases, where one in the subject counts twice. In a tie,
   the first of complaint, order, quote_request, support, newsletter.
5. No match: `other`.

Quoted text of earlier mails does not count. A phrase counts once, however often it occurs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from examples.email_agent.message import without_quotes

if TYPE_CHECKING:
    from collections.abc import Iterable

Category = Literal[
    "quote_request", "order", "complaint", "support", "newsletter", "spam", "auto_reply", "other"
]
CATEGORIES: tuple[Category, ...] = get_args(Category)

NOT_ANSWERED: frozenset[Category] = frozenset({"newsletter", "spam", "auto_reply"})
"""Categories that are archived without a draft."""

SPAM_PHRASES = 2
"""The least number of spam phrases in spam: honest mail may contain one."""

_SPAM = (
    r"dear (sir|friend|beneficiary|winner|webmaster)",
    r"(million|\d+m) (us )?(dollars|usd|euros)",
    r"(bitcoin|crypto\w*) (invest\w*|trading|profits?|wallet)",
    r"guaranteed? (returns?|profits?|ranking|#1)",
    r"(first page|top) (of|on) google|seo (services|package|expert)|backlinks",
    r"click (here|below) (now|immediately|to claim)",
    r"(verify|confirm|suspended?|unlock) your (account|mailbox|password)",
    r"you(\'ve| have) (been (selected|chosen)|won)",
    r"act now|limited time only|100% (free|risk)|no obligation",
    r"(next of kin|inheritance|lottery|prize money)",
    r"(cheap|discount(ed)?) (pills|meds|viagra|replica)",
)

# In a tie, the first one wins.
_PHRASES: tuple[tuple[Category, tuple[str, ...]], ...] = (
    (
        "complaint",
        (
            r"complain(t|ing)?|unacceptable|disappoint(ed|ing)|fed up|not (at all )?happy|unhappy",
            r"(money back|refund|chargeback|consumer (council|protection|rights))",
            r"(arrived|was delivered|came) (damaged|broken|scratched|cracked|dented)|damaged in transit",
            r"wrong (item|product|model|colou?r|one)|missing (from|parts?)",
            r"(still|never) (not |have not |haven\'t )?(received|arrived|heard|delivered)",
            r"(nobody|no one) (answers|answered|replies|replied|calls|called)",
            r"(third|second|3rd|2nd) time|again and again|weeks? late",
            r"return (it|them|this|the)|faulty|stopped working after",
        ),
    ),
    (
        "order",
        (
            r"(place|confirm|change|cancel|amend) (an |my |our |the |this )?order",
            r"purchase order|po ?(no\.?|number|#|-)? ?\d+",
            r"(i|we)(\'d| would)? (like|want) to (order|buy|purchase)|please (ship|send|deliver|invoice)",
            r"(order|invoice|tracking) (no\.?|number|#|\d+)|order status|where is my order",
            r"deliver(y|ed)? (address|date|by|to)|courier|collect (it|them) (from|at)|tracking",
            r"(proof of )?payment|paid|eft|pro[- ]?forma",
        ),
    ),
    (
        "quote_request",
        (
            r"quot(e|es|ation)|rfq|estimate|tender",
            r"(best|your) price|price ?list|pricing|how much|what (would|does|do) .{0,40}cost|cost of",
            r"bulk|trade (price|discount|account)|volume discount|reseller",
            r"(looking|hoping) (for|to (buy|install|equip|fit))|in the market for|budget (of|is|around)",
            r"(supply and )?install(ation)?|site (visit|survey)|fit[- ]?out|equip (our|the|a)",
            r"(do you|can you) (stock|sell|supply|have)|availab(le|ility)|lead time",
        ),
    ),
    (
        "support",
        (
            r"how (do|can|should) (i|we)|is it possible to|could you (tell|explain|help)",
            r"(won\'t|does ?n[o\']t|can\'t|cannot|not) (pair|connect|turn on|work|power|boot|find)",
            r"firmware|driver|manual|set ?up|setting|configur\w+|reset|update[ds]?",
            r"bluetooth|wi-?fi|hdmi|e?arc\b|airplay|impedance|ohms?",
            r"hum(ming)?|buzz(ing)?|crackl\w+|distort\w+|echo|no sound",
            r"warranty|repair|spare part|service (centre|center)",
        ),
    ),
    (
        "newsletter",
        (
            r"unsubscribe|view (this|in) (email|browser)|newsletter|manage (your )?preferences",
            r"this (week|month)\'?s? (news|deals|offers)|what\'s new|webinar|read more",
        ),
    ),
)


@dataclass(frozen=True)
class Verdict:
    """A category and the reason for it."""

    category: Category
    reason: str


def classify(subject: str, text: str, *, bulk: bool = False, automatic: bool = False) -> Verdict:
    """The category of a mail by the rules above."""
    if automatic:
        return Verdict("auto_reply", "sent automatically")
    words = without_quotes(text)
    if len(spam := _hits(_SPAM_RULES, subject) | _hits(_SPAM_RULES, words)) >= SPAM_PHRASES:
        return Verdict("spam", _reason(spam.values()))
    if bulk:
        return Verdict("newsletter", "sent to many recipients")
    best, score, found = "other", 0, {}
    for category, rules in _RULES:
        in_subject, in_text = _hits(rules, subject), _hits(rules, words)
        only_in_text = {number: word for number, word in in_text.items() if number not in in_subject}
        hits = 2 * len(in_subject) + len(only_in_text)
        if hits > score:
            best, score, found = category, hits, in_subject | only_in_text
    return Verdict(_category(best), _reason(found.values()) if found else "no rule matches")


def _compiled(phrases: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(rf"\b(?:{phrase})", re.IGNORECASE) for phrase in phrases)


_SPAM_RULES = _compiled(_SPAM)
_RULES = tuple((category, _compiled(phrases)) for category, phrases in _PHRASES)


def _hits(rules: tuple[re.Pattern[str], ...], text: str) -> dict[int, str]:
    """The numbers of the rules that match, with the matching words."""
    matches = ((number, rule.search(text)) for number, rule in enumerate(rules))
    return {number: match[0] for number, match in matches if match}


def _reason(words: Iterable[str]) -> str:
    return "says " + ", ".join(f"“{' '.join(word.split())}”" for word in words)


def _category(name: str) -> Category:
    return next(category for category in CATEGORIES if category == name)
