"""Trained gates (Pregated-MoE, arXiv 2308.12066): from what goes into a MoE layer to the experts of the next."""
