"""Weights of a GGUF file outside its routed experts, as the model has them. Imports torch."""
