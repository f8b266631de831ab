"""Text to token ids and back: tokenizer, streamed text, chat templates. Imports neither torch nor transformers."""
