"""Exercises written by programs and verified by running them. May import `pipeline.corpus.sources` and below."""
