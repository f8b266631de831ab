"""Replay of recorded routing: the hits, loads and stalls that a policy and a cache would have had."""
