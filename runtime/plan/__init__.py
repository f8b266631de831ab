"""Memory that a model needs, and whether it fits, without starting anything."""
