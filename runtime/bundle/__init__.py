"""Support bundles: one file with what helps to find out what an engine does, without prompts and secrets."""
