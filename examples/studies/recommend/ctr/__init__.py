"""Baselines that score one (user, item) pair at a time: DeepFM, DCN and DCN-V2 of torch-rechub."""
