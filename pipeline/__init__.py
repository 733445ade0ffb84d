"""The recipes: one file per verb, then the parts they share."""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first tensor: see training/allocator.py
