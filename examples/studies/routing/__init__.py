"""The study of routing: soft, specialised, hard, hashed and dense."""
