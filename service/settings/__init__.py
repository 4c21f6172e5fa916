"""The service's settings: their sources, their validation, and the error messages for wrong ones."""

from service.settings.settings import Settings, misspelt, read
from service.settings.wrong import SettingsError

__all__ = ["Settings", "SettingsError", "misspelt", "read"]
