"""Adapters for families outside transformers' experts interface, one file each; registry.py lists them."""
