"""Text that a language model writes at an OpenAI-compatible endpoint."""
