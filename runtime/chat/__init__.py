"""A conversation on the terminal: history, commands, and answers that stream."""
