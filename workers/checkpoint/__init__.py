"""Checkpoint folders without torch: config.json, safetensors headers, the survey, and reads of expert bytes."""
