"""The table of text sources. A source is told its options, gives documents and says what they depend on.

To add one: a class with `items` and `content_hash`, and a line in `SOURCES`.
"""

from pipeline.corpus.exercises import Exercises
from pipeline.corpus.folder_source import TextFolder
from pipeline.corpus.hub_source import HuggingFace
from pipeline.corpus.jsonl_source import Jsonl
from pipeline.corpus.parquet_source import Parquet
from pipeline.corpus.python_library import PythonLibrary
from pipeline.corpus.source import Source
from pipeline.corpus.synthetic_source import Synthetic
from pipeline.corpus.warc_source import Warc

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
