"""Quantizers of transformers that dequantise what the library cannot, while it loads a skeleton."""
