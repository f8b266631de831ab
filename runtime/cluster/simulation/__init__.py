"""Simulates a cluster on recorded routing, with the gateway and the routing rules that run for real."""
