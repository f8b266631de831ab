"""The demonstration: text streams with a quarter of the experts in memory, and every bit is checked."""
