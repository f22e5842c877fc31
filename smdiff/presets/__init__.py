"""Preset configurations, one TOML file each."""
