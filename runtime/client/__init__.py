"""The client library: prompts in, completions out."""
