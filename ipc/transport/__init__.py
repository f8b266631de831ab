"""Typed links between processes over ZeroMQ."""
