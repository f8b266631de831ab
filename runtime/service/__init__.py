"""Tells other programs of a command that runs for long: files that say where it is, and word to systemd."""
