"""The table of text sources. A source is told its options, gives documents and says what they depend on.

To add one: a class with `documents` and `content_hash`, and a line in `SOURCES`.
"""

from pipeline.corpus.exercises import Exercises
from pipeline.corpus.file_sources import Jsonl, TextFolder
from pipeline.corpus.hub_source import HuggingFace
from pipeline.corpus.python_library import PythonLibrary
from pipeline.corpus.source import Source

SOURCES: dict[str, type[Source]] = {
    "python_library": PythonLibrary,
    "exercises": Exercises,
    "jsonl": Jsonl,
    "text": TextFolder,
    "huggingface": HuggingFace,
}
