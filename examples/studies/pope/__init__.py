"""The study of offloading and hallucination."""
