"""Distance of a copy of a model from the original: both read a text, and their distributions are compared."""
