"""How good forecasts are, measured on traces."""
