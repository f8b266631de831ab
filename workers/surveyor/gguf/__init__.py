"""Describes a GGUF model in the form of a checkpoint folder, by rules of transformers and the `gguf` package."""
