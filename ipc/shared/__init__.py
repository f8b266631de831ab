"""Shared memory, the run directory, attachments, and limits of the machine."""
