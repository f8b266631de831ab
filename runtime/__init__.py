"""What a person runs: supervisor, client, command line, monitor."""
