"""XSMoE (arXiv 2508.05993): side experts on frozen encoders that grow and shrink with a stream of interactions."""
