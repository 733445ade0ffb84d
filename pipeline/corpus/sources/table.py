"""The table of text sources. A source is told its options, gives documents and says what they depend on.

To add one: a class with `items` and `content_hash`, and a line in `SOURCES`.
"""

from pipeline.corpus.exercises.source import Exercises
from pipeline.corpus.sources.folder import TextFolder
from pipeline.corpus.sources.hub import HuggingFace
from pipeline.corpus.sources.jsonl import Jsonl
from pipeline.corpus.sources.parquet import Parquet
from pipeline.corpus.sources.python_library import PythonLibrary
from pipeline.corpus.sources.source import Source
from pipeline.corpus.sources.warc import Warc
from pipeline.corpus.synthetic.source import Synthetic

SOURCES: dict[str, type[Source]] = {
    "python_library": PythonLibrary,
    "exercises": Exercises,
    "jsonl": Jsonl,
    "parquet": Parquet,
    "text": TextFolder,
    "warc": Warc,
    "huggingface": HuggingFace,
    "synthetic": Synthetic,
}
