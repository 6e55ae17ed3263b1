"""Read LayerSync's settings from a trainer's configuration file, and change only those in it."""

from layersync_plugin_webui.settings_files.file import SettingsFile

__all__ = ["SettingsFile"]
