"""Commands for an engine that runs: look at it, ask why it waits, give it orders."""
