"""The families of checkpoints that hornbook reads, trains, grows and writes. A new one: one file, one line here.

Imports nothing but its own files, and no torch. What a network computes follows from a family's properties; its names
for tensors and config fields are known here and nowhere else.
"""

from model.families.family import Family
from model.families.llama import LLAMA
from model.families.olmo2 import OLMO2
from model.families.phi import PHI
from model.families.qwen2 import QWEN2
from model.families.qwen3 import QWEN3
from model.families.smollm3 import SMOLLM3

FAMILIES: dict[str, Family] = {
    "phi": PHI,
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "olmo2": OLMO2,
    "smollm3": SMOLLM3,
}
"""By the name that `model.family` and a `config.json`'s `model_type` give."""
