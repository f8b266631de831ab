"""Which rows step together: groups whose rows ask for the same experts activate fewer of them."""
