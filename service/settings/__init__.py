"""The service's settings: their sources, their validation, and the error messages for wrong ones."""

from service.settings.errors import SettingsError
from service.settings.settings import Settings, misspelt, read

__all__ = ["Settings", "SettingsError", "misspelt", "read"]
