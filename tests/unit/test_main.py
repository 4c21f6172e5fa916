"""The entry point of the `squad` command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SQUAD = Path(sys.executable).with_name("squad")

_INTERRUPTED_DURING_IMPORT = """
import sys
from service.__main__ import main

class Interrupted:
    def find_spec(self, name, *_):
        if name == "service.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
main()
"""

_PRINTS_GC_STATE = """
import gc
import service.cli
service.cli.main = lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000)
from service.__main__ import main
main()
"""


def _python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_ctrl_c_during_the_import_exits_without_output() -> None:
    ended = _python(_INTERRUPTED_DURING_IMPORT)

    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_garbage_collection_is_enabled_and_imported_objects_are_frozen() -> None:
    assert _python(_PRINTS_GC_STATE).stdout == "True True\n"


def test_squad_and_python_m_service_are_the_same_command() -> None:
    shown = [
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        for command in ([_SQUAD], [sys.executable, "-m", "service"])
    ]

    assert shown[0] == shown[1]
    assert shown[0].startswith("squad, version ")
