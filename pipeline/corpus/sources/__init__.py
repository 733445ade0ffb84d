"""Where text comes from: local files of records or documents, the Hugging Face hub, the Python library."""
