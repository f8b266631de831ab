"""Moves the bytes of experts: reader threads, direct reads, the emulated link."""
