"""Prompts from files, published data sets and the command line."""
