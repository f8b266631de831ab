"""Families outside transformers' experts interface, one file each, made to look like those inside it."""
