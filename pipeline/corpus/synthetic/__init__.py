"""Text that a language model writes at an OpenAI-compatible endpoint.

May import `pipeline.corpus.exercises` and below.
"""
