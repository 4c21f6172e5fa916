"""How the command is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SQUAD = Path(sys.executable).with_name("squad")

_INTERRUPTED_WHILE_IT_LOADS = """
import sys
from service.__main__ import main

class Interrupted:
    def find_spec(self, name, *_):
        if name == "service.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
main()
"""

_COLLECTS = """
import gc
import service.cli
service.cli.main = lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000)
from service.__main__ import main
main()
"""


def _python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_ctrl_c_while_it_loads_ends_it_without_a_word() -> None:
    ended = _python(_INTERRUPTED_WHILE_IT_LOADS)

    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_garbage_is_collected_again_but_what_was_loaded_is_not_gone_through() -> None:
    assert _python(_COLLECTS).stdout == "True True\n"


def test_it_is_the_same_command_as_a_module() -> None:
    shown = [
        subprocess.run([*way, "--version"], capture_output=True, text=True, check=True).stdout
        for way in ([_SQUAD], [sys.executable, "-m", "service"])
    ]

    assert shown[0] == shown[1]
    assert shown[0].startswith("squad, version ")
