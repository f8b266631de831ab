"""One package a process; each worker is a thin shell around a pure core."""
