"""The routing path predictor: all MoE layers of a token in one pass, from its id and the routing of earlier tokens."""
