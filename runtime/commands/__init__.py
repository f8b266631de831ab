"""The command line: one module a command, each a dataclass whose fields are its options and whose `run` does it."""
