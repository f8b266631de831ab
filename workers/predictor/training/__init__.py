"""Training of predictors. Only this folder and the paper's transformer import torch."""
