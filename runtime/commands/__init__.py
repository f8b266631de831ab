"""The commands: one module each, with a dataclass whose fields are its options and whose `run` does the work."""
