"""Predictors to compare with: simple ones, bounds, and ones that are wrong on purpose."""
