"""From the words of a command line to a command, and from its end to an exit code."""
