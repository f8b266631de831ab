"""Supervisor, client, command line and monitor: everything that a user runs."""
