"""What `make gpu-check` runs on a machine with a GPU: see check.py."""
