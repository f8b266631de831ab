"""Replays a recording and compares: bit by bit with every expert resident, within tolerances with transformers."""
