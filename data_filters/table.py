"""Names that a config may use under `data.filters`, and the order they are tried in: cheap and legal ones first,
so that a document dropped for two reasons is counted under the more serious one. The first rule that drops wins.
"""

from data_filters.c4 import C4Quality
from data_filters.code import Boilerplate, DataLines, GeneratedCode, Parses
from data_filters.fineweb import FineWebQuality
from data_filters.general import EvaluationPackages, Length, Letters, LongLines, Quality
from data_filters.gopher import GopherQuality
from data_filters.language import Language
from data_filters.licence import Licence
from data_filters.personal_data import PersonalData
from data_filters.repetition import GopherRepetition
from data_filters.rule import Rule

FILTERS: dict[str, type[Rule]] = {
    "licence": Licence,
    "evaluation_packages": EvaluationPackages,
    "length": Length,
    "personal_data": PersonalData,
    "long_lines": LongLines,
    "letters": Letters,
    "generated_code": GeneratedCode,
    "boilerplate": Boilerplate,
    "data_lines": DataLines,
    "parses": Parses,
    "language": Language,
    "gopher_repetition": GopherRepetition,
    "gopher_quality": GopherQuality,
    "fineweb": FineWebQuality,
    "c4": C4Quality,
    "quality": Quality,  # needs the trained score, so it is read by the cut, the last decision of the stage
}
