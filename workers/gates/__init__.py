"""Trained gates (Pregated-MoE, arXiv 2308.12066): the input of a MoE layer predicts the experts of the next."""
