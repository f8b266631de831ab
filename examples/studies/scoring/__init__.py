"""Readers and scorers of POPE, VQA-v2, MMBench and SEED-Bench."""
