"""The command line around the commands: parsing, help, errors and exit codes."""
