"""Pieces of pages that know no stage: templates, charts, the data card, what is private. May import `system`."""
