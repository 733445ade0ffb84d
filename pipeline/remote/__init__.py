"""`HORNBOOK_REMOTE`: copies of folders at a URL, so that a run outlives its disk."""
