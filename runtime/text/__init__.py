"""Text to token ids and back: the tokenizer, streams of text, chat templates. No torch, no transformers."""
