"""Pieces of pages that know no stage: HTML, charts, Markdown, the data card. May import `system`."""
