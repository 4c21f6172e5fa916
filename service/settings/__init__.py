"""The service's settings: where they come from, what they may be, and what is said of one that is wrong."""

from service.settings.settings import Settings, misspelt, read
from service.settings.wrong import SettingsError

__all__ = ["Settings", "SettingsError", "misspelt", "read"]
