"""Models for others: quantized formats, GGUF, model cards. May import `evaluation` and below."""
