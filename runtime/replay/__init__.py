"""Caches replayed over recorded routing: what a policy would have hit and loaded, and how long compute would have
waited."""
