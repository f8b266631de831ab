"""GGUF files: their headers, the blocks that tensors are stored in, and a folder that describes such a model."""
