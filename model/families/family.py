"""What a family of checkpoints is: the properties of its network, and its names in Hugging Face's files.

Inside hornbook a tensor's name tells its role, the same in all families (`OUR_NAMES`; they are Phi's where Phi has the
role). `Family.stored_name` and the `Names` of a shape translate at the files' edge.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Norm = Literal["layernorm", "rmsnorm"]
Block = Literal["parallel", "pre", "post"]
Mlp = Literal["gelu", "swiglu"]
QkNorm = Literal["none", "head", "full"]

SWIGLU_TENSORS = {  # our names and theirs, in all families of Llama's kind
    "self_attn.dense": "self_attn.o_proj",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
    "mlp_layernorm": "post_attention_layernorm",
    "model.final_layernorm": "model.norm",
}


@dataclass(frozen=True)
class Family:
    """A network's properties that no key of a config changes, and how its files spell a shape.

    `norm`: LayerNorm has a mean and a bias, RMSNorm neither. `block`: `parallel` adds attention and MLP of one norm's
    output (Phi); `pre` normalizes before each of the two (Llama); `post` normalizes what each of them adds (OLMo 2).
    `qk_norm`: queries and keys normalized per `head`, or over their `full` width. A `*_bias` of None: a key decides,
    and it is off by default. `rotary_blocks`: some blocks may be without rotary embedding.
    """

    name: str
    architecture: str
    """The class of transformers that reads the exports."""
    known: str
    """Checkpoints of this family, for messages."""
    norm: Norm = "rmsnorm"
    block: Block = "pre"
    mlp: Mlp = "swiglu"
    qk_norm: QkNorm | None = "none"
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    mlp_bias: bool | None = False
    head_bias: bool = False
    rotary_blocks: bool = False
    widths_divide: bool = False
    """Whether transformers wants hidden_size to be a multiple of num_attention_heads where head_dim is given too."""
    tensors: Mapping[str, str] = field(default_factory=lambda: SWIGLU_TENSORS)
    """Our name of a module -> the stored one, where they differ."""
    fields: Mapping[str, str] = field(default_factory=lambda: {"layer_norm_eps": "rms_norm_eps"})
    """Our key -> the config.json's field, where they differ."""
    silent: Mapping[str, Any] = field(default_factory=dict)
    """What transformers fills in where a config.json says nothing, by our keys."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the family's config.json that always hold the same."""
    gguf: str | None = None
    """llama.cpp's name of the architecture."""
    gguf_interleaved: bool = False
    """Whether llama.cpp keeps the rows of queries and keys with the two halves of each rotary pair side by side."""

    def stored_name(self, name: str) -> str:
        """The files' name of one of our tensors."""
        prefix, rest = "", name
        if name.startswith("model.layers."):
            _, _, index, rest = name.split(".", 3)
            prefix = f"model.layers.{index}."
        for ours, stored in self.tensors.items():
            if rest.startswith(f"{ours}."):  # what follows may be more than `weight`: an adapter's parts
                return f"{prefix}{stored}{rest.removeprefix(ours)}"
        return name

    def matrices(self) -> dict[str, str]:
        """A block's matrices: our name of each, without its module's -> the files' name."""
        roles = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2")
        if self.mlp == "swiglu":
            roles = (*roles, "mlp.gate_proj")
        return {role.partition(".")[2]: self.tensors.get(role, role).partition(".")[2] for role in roles}

    def defaults(self) -> dict[str, Any]:
        """Values of the keys that a config leaves out."""
        if self.norm == "layernorm":
            return {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"}
        return {"partial_rotary_factor": 1.0, "layer_norm_eps": self.silent["layer_norm_eps"], "hidden_act": "silu"}
