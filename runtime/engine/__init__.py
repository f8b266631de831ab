"""Starts, watches, restarts and stops the processes of an engine."""
