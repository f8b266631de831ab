"""Scenes of coloured shapes with known objects, and questions about them."""
