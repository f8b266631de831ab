"""How the processes talk: messages, codec, links, shared memory, run directory."""
