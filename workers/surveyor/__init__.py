"""From a checkpoint and transformers' own model code to a `Survey`: where the bytes of every expert lie."""
