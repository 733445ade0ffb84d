"""Names that a config may use under `data.filters`, and the order they are tried in: cheap and legal ones first,
so that a document dropped for two reasons is counted under the more serious one. The first rule that drops wins.
"""

from data_filters.evaluation_packages import EvaluationPackages
from data_filters.generated_code import GeneratedCode
from data_filters.gopher import GopherQuality, GopherRepetition
from data_filters.licence import Licence
from data_filters.parses import Parses
from data_filters.quality import Quality
from data_filters.rule import Rule
from data_filters.shape import Length, Letters, LongLines

FILTERS: dict[str, type[Rule]] = {
    "licence": Licence,
    "evaluation_packages": EvaluationPackages,
    "length": Length,
    "long_lines": LongLines,
    "letters": Letters,
    "generated_code": GeneratedCode,
    "parses": Parses,
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "quality": Quality,  # needs the trained score, so it is read by the cut, the last decision of the stage
}
