"""Interface and building blocks of every predictor."""
