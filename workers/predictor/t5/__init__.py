"""The predictor of the paper (arXiv 2410.17954): a small T5 that sees token ids alone."""
