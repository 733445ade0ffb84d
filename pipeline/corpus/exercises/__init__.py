"""Exercises written by programs and verified by running them."""
