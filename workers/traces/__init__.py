"""Routing that was recorded: what replay simulates and predictors learn from."""
