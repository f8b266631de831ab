"""What processes share besides messages: memory, the run directory, attachments."""
