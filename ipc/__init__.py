"""Communication between the processes: messages, links, shared memory, run directory, stage harness."""
