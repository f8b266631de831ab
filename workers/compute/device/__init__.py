"""Slots in the memory of a device: kernels and copies are enqueued on its streams, and events alone order them.

On a CPU none of this is used. Nothing here needs CUDA to be imported; only cuda.py talks to it.
"""
