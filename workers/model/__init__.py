"""The model that is run: its architecture, units of rows, caches, and what a family of models needs."""
