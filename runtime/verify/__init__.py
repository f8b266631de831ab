"""Runs a recording again and compares: bit by bit with every expert resident, and within tolerances with transformers."""
