"""Parts of several commands: a client of an engine, prompts, sampling options, printing."""
