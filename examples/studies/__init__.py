"""Studies: questions that readers of the paper ask, each answered by a command. Results: docs/studies/."""
