"""The version of the software."""

from importlib.metadata import version

VERSION = version("squad-orchestrator")
