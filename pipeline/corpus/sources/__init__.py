"""Where text comes from: local files of records or documents, the Hugging Face hub, the Python library.

May import `pipeline.corpus.text`, `pages` (what is private) and below.
"""
