"""Side experts served through the loader, widened until they do not fit the slots."""
