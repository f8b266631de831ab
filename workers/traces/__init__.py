"""Recorded routing: input of replay and of training."""
