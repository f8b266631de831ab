"""Start, watch, restart and stop the processes of an engine."""
