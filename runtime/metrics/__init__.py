"""Prometheus metrics of engines: what is exported, made from snapshots, and a server for engines without HTTP."""
