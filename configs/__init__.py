"""The configuration schema and its presets."""
