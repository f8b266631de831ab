"""Published formats of quantised matrices: which stored tensors become which parts of a packed one."""
