"""Small vision-language models of three architectures: their making and training."""
