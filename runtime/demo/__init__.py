"""The demonstration: a model streams text with a quarter of its experts in memory, and every bit is checked."""
