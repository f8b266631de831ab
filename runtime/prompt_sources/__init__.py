"""Prompts from files, data sets and the command line."""
