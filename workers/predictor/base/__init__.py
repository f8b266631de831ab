"""What every predictor is made of."""
