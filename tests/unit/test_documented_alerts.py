"""The alerts in docs/operations.md, as far as they can be judged without their metrics."""

from __future__ import annotations

import re
from pathlib import Path

_TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
_RULES = dict(re.findall(r"^  - alert: (\w+)\n(?:    #.*\n)*    expr: (.+)$", _TEXT, re.MULTILINE))


def test_document_says_what_to_do_about_each_alert() -> None:
    assert _RULES
    assert re.findall(r"^\| `(Squad\w+)` \| \S", _TEXT, re.MULTILINE) == list(_RULES)


def test_single_process_that_hangs_or_cannot_decide_is_reported() -> None:
    """An aggregate over all processes would hide it."""
    (job,) = re.findall(r"^- job_name: (\w+)$", _TEXT, re.MULTILINE)
    of_one_process = [expr for expr in _RULES.values() if not re.search(r"\b(max|min|sum|count)\(", expr)]
    assert f'up{{job="{job}"}} == 0' in of_one_process
    assert any("squad_writer_ready == 0" in expr for expr in of_one_process)
