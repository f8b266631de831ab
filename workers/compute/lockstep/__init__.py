"""Rows that run in lockstep, each with the shapes that it has alone: the option `batch_invariant` (I1d)."""
