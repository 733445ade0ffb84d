"""The shape of a network, in the field names of Hugging Face's Phi, and what follows from it by arithmetic.

In: the `model` section of a config, or a `config.json`. Out: `ModelConfig`, which answers what a shape costs
(tensors, parameters, FLOPs) before anything is built, refuses shapes that cannot work, and writes the `config.json`
that the family's class in transformers reads (checked against transformers 5, which keeps rotary settings in
`rope_parameters`, and the older flat fields that transformers 4 and llama.cpp read).
A `config.json` may come from a stranger: its fields are read by type, or refused in one sentence. Imports no torch.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from model.families import FAMILIES
from model.families.family import Block, Family, Mlp, Norm, QkNorm

ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "gelu": ("gelu_new", "gelu_pytorch_tanh"),  # two names of the same function: the tanh approximation
    "swiglu": ("silu", "swish"),
}
ROPE_SCALINGS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Types of scaled rotary embeddings, and their settings."""
NO_ROPE_INTERVAL = 4  # SmolLM3: every fourth block is without rotary embedding
BLOCK_NORMS: dict[str, tuple[str, ...]] = {
    "parallel": ("input_layernorm",),
    "pre": ("input_layernorm", "mlp_layernorm"),
    "post": ("attention_output_layernorm", "mlp_output_layernorm"),
}
"""The norms of a block over the residual stream, by our names."""
OPTIONS = ("family", "attention_bias", "mlp_bias", "rope_scaling", "no_rope_layers")  # keys that Phi does without

MOST_LAYERS, MOST = 10_000, 2**31  # beyond what anyone trains: a stranger's file must not make us list its tensors
T = TypeVar("T")
WORDS: dict[type, str] = {
    str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "an object",
}  # fmt: skip


class ImpossibleShape(ValueError):
    """The model section describes a network that cannot be built, or that its family's files cannot express."""


@dataclass
class ModelConfig:
    """A decoder's shape: its family (`model.families`), which fixes what kind of network it is, and its sizes.

    `head_dim=None` means hidden_size / num_attention_heads, `num_key_value_heads=None` means one per attention head.
    `layer_norm_eps` is the eps of every norm, RMSNorm too. `attention_bias` and `mlp_bias` exist in families that have
    the choice; `rope_scaling` is the dictionary of a config.json (`ROPE_SCALINGS`); `no_rope_layers` has a 0 for every
    block without rotary embedding and a 1 for the others, null: a 0 for every fourth.
    Nothing is checked on construction, so that a config can be completed first: call `validate()`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    partial_rotary_factor: float | None = None
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    layer_norm_eps: float | None = None
    qk_layernorm: bool = False
    hidden_act: str | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    family: str = "phi"
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: dict[str, Any] | None = None
    no_rope_layers: list[int] | None = None

    def __post_init__(self) -> None:
        for name, value in FAMILIES[self.family].defaults().items() if self.family in FAMILIES else ():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def identity(self) -> dict[str, Any]:
        """All fields, for fingerprints; a field of `OPTIONS` only where it is set."""
        unset = {field.name: field.default for field in fields(self) if field.name in OPTIONS}
        return {name: value for name, value in asdict(self).items() if name not in unset or value != unset[name]}

    # The properties that the network, growth and every format ask for.

    @property
    def kin(self) -> Family:
        """The family's entry in the table."""
        return FAMILIES[self.family]

    @property
    def norm(self) -> Norm:
        return self.kin.norm

    @property
    def block(self) -> Block:
        return self.kin.block

    @property
    def mlp(self) -> Mlp:
        return self.kin.mlp

    @property
    def qk_norm(self) -> QkNorm:
        return self.kin.qk_norm or ("head" if self.qk_layernorm else "none")

    @property
    def eps(self) -> float:
        return self.layer_norm_eps or 0.0

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias if self.kin.qkv_bias is None else self.kin.qkv_bias

    @property
    def out_bias(self) -> bool:
        return self.attention_bias if self.kin.out_bias is None else self.kin.out_bias

    @property
    def ff_bias(self) -> bool:
        return self.mlp_bias if self.kin.mlp_bias is None else self.kin.mlp_bias

    @property
    def head_bias(self) -> bool:
        return self.kin.head_bias

    @property
    def rotating(self) -> list[bool]:
        """For each block, whether queries and keys rotate."""
        if not self.kin.rotary_blocks:
            return [True] * self.num_hidden_layers
        if self.no_rope_layers is not None:
            return [bool(flag) for flag in self.no_rope_layers]
        return [(block + 1) % NO_ROPE_INTERVAL != 0 for block in range(self.num_hidden_layers)]

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim if self.head_dim is not None else self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads (groups)."""
        return self.num_key_value_heads if self.num_key_value_heads is not None else self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """How many coordinates of each head rotate; truncated, because transformers truncates."""
        return int(self.head_size * (self.partial_rotary_factor or 0))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the state dict, by our name (`Family.stored_name` translates), in the order in which files
        are written."""
        d, shapes = self.hidden_size, {}
        shapes["model.embed_tokens.weight"] = (self.vocab_size, d)
        for layer in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in self._block_shapes().items()}
        shapes |= self._norm_shapes("model.final_layernorm", d)
        head = _linear("lm_head", (self.vocab_size, d), self.head_bias)
        if self.tie_word_embeddings:  # one matrix, held once; the head keeps its bias
            del head["lm_head.weight"]
        return shapes | head

    def _block_shapes(self) -> dict[str, tuple[int, ...]]:
        d, ff = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_size, self.kv_heads * self.head_size
        shapes = _linear("self_attn.q_proj", (queries, d), self.qkv_bias)
        shapes |= _linear("self_attn.k_proj", (keys, d), self.qkv_bias)
        shapes |= _linear("self_attn.v_proj", (keys, d), self.qkv_bias)
        shapes |= _linear("self_attn.dense", (d, queries), self.out_bias)
        if self.qk_norm != "none":
            sizes = (self.head_size, self.head_size) if self.qk_norm == "head" else (queries, keys)
            shapes |= self._norm_shapes("self_attn.q_layernorm", sizes[0])
            shapes |= self._norm_shapes("self_attn.k_layernorm", sizes[1])
        if self.mlp == "swiglu":
            shapes |= _linear("mlp.gate_proj", (ff, d), self.ff_bias)
        shapes |= _linear("mlp.fc1", (ff, d), self.ff_bias) | _linear("mlp.fc2", (d, ff), self.ff_bias)
        for name in BLOCK_NORMS[self.block]:
            shapes |= self._norm_shapes(name, d)
        return shapes

    def _norm_shapes(self, name: str, size: int) -> dict[str, tuple[int, ...]]:
        return _linear(name, (size,), self.norm == "layernorm")

    def with_blocks(self, blocks: int) -> "ModelConfig":
        """The same with another number of blocks; which of them rotate is repeated."""
        flags = self.no_rope_layers
        if flags is not None:
            flags = [flags[block % len(flags)] for block in range(blocks)]
        return replace(self, num_hidden_layers=blocks, no_rope_layers=flags)

    def stored_names(self) -> dict[str, str]:
        """The name of every tensor in the files of the family -> our name, in the order of the files."""
        return {self.kin.stored_name(name): name for name in self.tensor_shapes()}

    @property
    def parameters(self) -> int:
        """Exact number of parameters (Phi-2: 2,779,683,840)."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without the input embedding, which is looked up and not multiplied; the head is counted, tied or
        not."""
        return self.parameters - (0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size)

    def flops_per_token(self, sequence_length: int) -> int:
        """Training FLOPs (forward and backward) per token: 6N + 12 * L * T * d.

        N is `non_embedding_parameters` (head included), d the attention width (heads x head size). Attention is
        counted in full although half of it is masked: the convention of the published tables (Phi-2 at 2048 tokens:
        17.9 GFLOP). Recomputation is not counted: this is the numerator of MFU, not of HFU.
        """
        attention_width = self.num_attention_heads * self.head_size
        attention = 12 * self.num_hidden_layers * sequence_length * attention_width
        return 6 * self.non_embedding_parameters + attention

    def validate(self) -> "ModelConfig":
        """Returns itself, or raises `ImpossibleShape` in one sentence that names the keys to change."""
        if self.family not in FAMILIES:
            raise ImpossibleShape(f"model.family is {shown(self.family)}; it must be one of: {', '.join(FAMILIES)}.")
        self._check_sizes()
        self._check_heads()
        self._check_rotary()
        self._check_family()
        return self

    def _check_sizes(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), _kind(field)
            if not is_of(value, kind) and not (value is None and field.default is None):
                raise ImpossibleShape(f"model.{field.name} is {shown(value)}; it must be {WORDS[kind]}.")
            if kind not in (int, float) or value is None or field.name == "initializer_range":
                continue
            if not 0 < value <= (MOST_LAYERS if field.name == "num_hidden_layers" else MOST):
                raise ImpossibleShape(
                    f"model.{field.name} is {shown(value)}; it must be greater than 0 and of a size that exists."
                )
        if not 0 <= self.initializer_range <= MOST:
            raise ImpossibleShape(
                f"model.initializer_range is {shown(self.initializer_range)}; it must be at least 0 and of a size that "
                "exists."
            )

    def _check_heads(self) -> None:
        d, heads = self.hidden_size, self.num_attention_heads
        if self.head_dim is None and d % heads:
            raise ImpossibleShape(
                f"model.hidden_size={d} is not divisible by model.num_attention_heads={heads}; "
                f"change one of them, or set model.head_dim."
            )
        if heads % self.kv_heads:
            raise ImpossibleShape(
                f"model.num_key_value_heads={self.kv_heads} does not divide model.num_attention_heads={heads}; "
                f"each key-value head serves the same number of attention heads."
            )
        if self.kin.widths_divide and d % heads:
            raise ImpossibleShape(
                f"model.hidden_size={d} is not divisible by model.num_attention_heads={heads}, and transformers' "
                f"{self.kin.architecture} wants it to be; change one of them, or write model.family=qwen3."
            )
        if self.qk_layernorm and self.head_size != d // heads:
            raise ImpossibleShape(
                f"model.qk_layernorm needs model.head_dim ({self.head_size}) to equal model.hidden_size / "
                f"model.num_attention_heads ({d // heads}), because transformers' Phi sizes those norms so."
            )

    def _check_rotary(self) -> None:
        size, factor = self.head_size, self.partial_rotary_factor or 0.0
        meant = round(size * factor)
        if meant != self.rotary_dim and abs(size * factor - meant) < 1e-6:
            raise ImpossibleShape(
                f"model.partial_rotary_factor={factor} times head size {size} is meant to be {meant}, but transformers "
                f"truncates it to {self.rotary_dim}; write model.partial_rotary_factor={_safe_factor(meant, size)}."
            )
        if self.rotary_dim <= 0 or self.rotary_dim % 2 or self.rotary_dim > size:
            even = min(size // 2 * 2, max(2, 2 * round(size * factor / 2)))
            advice = f"write model.partial_rotary_factor={_safe_factor(even, size)}" if even else "use wider heads"
            raise ImpossibleShape(
                f"the rotary size is {self.rotary_dim} (head size {size} x model.partial_rotary_factor {factor}, "
                f"truncated); it must be even, at least 2 and at most the head size: {advice} or change the head size."
            )

    def _check_family(self) -> None:
        """What the family's network and files have no place for."""
        activations = ACTIVATIONS[self.mlp]
        if self.hidden_act not in activations:
            raise ImpossibleShape(
                f"model.hidden_act is {self.hidden_act!r}; a network of the family {self.family} computes "
                f"{'the tanh GELU' if self.mlp == 'gelu' else 'SwiGLU'}, so write one of: {', '.join(activations)}."
            )
        kin = self.kin
        lacking = {
            "qk_layernorm": self.qk_layernorm and kin.qk_norm is not None,
            "attention_bias": self.attention_bias and kin.qkv_bias is not None,
            "mlp_bias": self.mlp_bias and kin.mlp_bias is not None,
            "no_rope_layers": self.no_rope_layers is not None and not kin.rotary_blocks,
            "partial_rotary_factor": self.partial_rotary_factor != 1 and kin.norm == "rmsnorm",
            "rope_scaling": self.rope_scaling is not None and kin.norm == "layernorm",
        }
        if key := next((key for key, wrong in lacking.items() if wrong), None):
            raise ImpossibleShape(
                f"model.{key} is {shown(getattr(self, key))}, and the family {self.family} has no such choice; leave "
                f"the key out."
            )
        if self.rope_scaling is not None:
            _rope_scaling(self.rope_scaling, "model.rope_scaling")
        flags = self.no_rope_layers
        if flags is not None and (len(flags) != self.num_hidden_layers or not set(flags) <= {0, 1}):
            raise ImpossibleShape(
                f"model.no_rope_layers is {shown(flags)}; it must hold a 0 (no rotary embedding) or a 1 for each of "
                f"the {self.num_hidden_layers} blocks."
            )

    def to_hf(
        self, bos_token_id: int | None = None, eos_token_id: int | list[int] | None = None, dtype: str = "float32",
        pad_token_id: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The content of a `config.json` for the family's class; `dtype` as in "float32", "bfloat16"."""
        kin = self.kin
        content: dict[str, Any] = {"architectures": [kin.architecture], "model_type": kin.name}
        for name, value in self.identity().items():
            if name not in ("family", "rope_scaling", "no_rope_layers"):
                content[kin.fields.get(name, name)] = value
        content["num_key_value_heads"] = self.kv_heads
        if self.head_dim is None:
            del content["head_dim"]  # transformers' Phi takes a null for a head size and fails
        scaling = {"rope_type": "default"} if self.rope_scaling is None else dict(self.rope_scaling)
        content["rope_parameters"] = scaling | {"rope_theta": self.rope_theta}
        content |= {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "use_cache": True}
        if kin.norm == "layernorm":
            content["rope_parameters"]["partial_rotary_factor"] = self.partial_rotary_factor
        else:  # keys that only Phi's files have
            del content["partial_rotary_factor"], content["qk_layernorm"]
            content["pad_token_id"] = None  # else transformers fills in a token of the published vocabulary
        if self.rope_scaling is not None:
            content["rope_scaling"] = scaling  # what transformers 4 reads
        if kin.rotary_blocks:
            content["no_rope_layers"] = [int(flag) for flag in self.rotating]
        real = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
        if pad_token_id not in (None, bos_token_id, *real):  # transformers would freeze the row of a real token
            content["pad_token_id"] = pad_token_id
        content |= {**kin.extra, "attention_dropout": 0.0}
        return content | {"dtype": dtype, "torch_dtype": dtype}  # new name, and the one that transformers 4 reads

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> "ModelConfig":
        """Reads a `config.json`, old style (flat rotary fields) or new (`rope_parameters`); dropout is ignored.

        Raises `ImpossibleShape` for a family that is not in the table, and for what no network here computes.
        """
        family = content.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            read = "; ".join(f"{name} ({kin.known})" for name, kin in FAMILIES.items())
            raise ImpossibleShape(
                f"this is a model of the family {shown(family)}, and hornbook reads {read}, and its own exports; "
                f"choose such a source."
            )
        kin, rope = FAMILIES[family], _rotary(content)
        _refuse_windows(content)
        stored = {field.name: kin.fields.get(field.name, field.name) for field in fields(cls) if field.name != "family"}
        values = {name: content[field] for name, field in stored.items() if content.get(field) is not None}
        values |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
        values["rope_scaling"] = _rope_scaling(rope, "the rotary embedding")
        if kin.rotary_blocks and "no_rope_layers" not in values:
            values["no_rope_layers"] = _regular_blocks(content, kin)
        return cls(**{"family": family, **kin.silent, **values}).validate()


def _kind(field: Field) -> type:
    """The JSON type of a field, its null aside."""
    if (origin := get_origin(field.type)) in WORDS:
        return origin
    kinds: tuple[Any, ...] = get_args(field.type) or (field.type,)
    kind = next(kind for kind in kinds if kind is not type(None))
    return get_origin(kind) or kind


def _rotary(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings of a `config.json`, empty where it is silent.

    Where both forms stand in the file, the older `rope_scaling` decides, as in transformers 5."""
    forms = [read_field(content, name, dict, "config.json") for name in ("rope_scaling", "rope_parameters")]
    rope = next(filter(None, forms), {})
    if nested := next((name for name, value in rope.items() if isinstance(value, dict)), None):
        raise ImpossibleShape(f"the rotary embedding has settings for {nested!r} alone; only one for all is read.")
    return rope


def _rope_scaling(rope: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """The settings of a scaled rotary embedding alone, None for an unscaled one. Raises `ImpossibleShape`."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ROPE_SCALINGS:
        raise ImpossibleShape(
            f"{where} is of type {shown(kind)}; hornbook computes: default, {', '.join(ROPE_SCALINGS)}."
        )
    settings: dict[str, Any] = {name: rope.get(name) for name in ROPE_SCALINGS[kind]}
    for name, value in settings.items():
        if value is None or not is_of(value, float) or not 0 < value <= MOST:
            raise ImpossibleShape(f"{where} of type {kind!r} has {name}={shown(value)}; it must be a number above 0.")
    if kind == "llama3" and not settings["low_freq_factor"] < settings["high_freq_factor"]:
        raise ImpossibleShape(f"{where} has a low_freq_factor that is not below its high_freq_factor.")
    return {"rope_type": kind, **settings}


def _refuse_windows(content: Mapping[str, Any]) -> None:
    """Attention here is always over all tokens before."""
    layers = content.get("layer_types") or []
    # Qwen's files hold a window that use_sliding_window=false switches off; files without that switch mean it.
    sliding = content.get("use_sliding_window", content.get("sliding_window") is not None)
    if sliding or (isinstance(layers, list) and any(layer != "full_attention" for layer in layers)):
        raise ImpossibleShape(
            "this model's attention looks at a window of tokens (sliding_window or layer_types in config.json); "
            "hornbook computes full attention only: choose another source."
        )


def _regular_blocks(content: Mapping[str, Any], kin: Family) -> list[int] | None:
    """Which blocks rotate where a config.json gives an interval, or nothing."""
    interval = read_field(content, "no_rope_layer_interval", int, "config.json") or NO_ROPE_INTERVAL
    blocks = read_field(content, "num_hidden_layers", int, "config.json") or kin.silent["num_hidden_layers"]
    if interval == NO_ROPE_INTERVAL or not 0 < blocks <= MOST_LAYERS:
        return None
    return [int((block + 1) % interval != 0) for block in range(blocks)]


def _linear(name: str, shape: tuple[int, ...], bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def _safe_factor(rotary_dim: int, head_size: int) -> float:
    """The shortest decimal factor that truncates to exactly `rotary_dim`."""
    exact = rotary_dim / head_size
    for digits in range(1, 17):
        candidate = round(exact, digits)
        rotating = head_size * candidate
        if candidate <= 1 and int(rotating) == rotary_dim and rotating - rotary_dim < 0.5:
            return candidate
    return math.nextafter(exact, 2.0)


class UnreadableModel(ValueError):
    """A folder does not hold a model that hornbook can read; the message says why and what to do."""


def read_object(file: Path) -> dict[str, Any]:
    """The object in a file. Raises `UnreadableModel` where there is none, whatever a stranger wrote instead."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise UnreadableModel(f"{file} is not readable as JSON ({error}); write or download it again.") from error
    if not isinstance(content, dict):
        raise UnreadableModel(f"{file} holds no JSON object; write or download it again.")
    return content


def read_field(content: Mapping[str, Any], name: str, kind: type[T], where: Path | str) -> T | None:
    """The value of a field, or None where it is absent or null. Raises `UnreadableModel` for another type than `kind`:
    true is no number, a whole number is a number, and neither NaN nor infinity is one."""
    value = content.get(name)
    if value is None or is_of(value, kind):
        return value
    raise UnreadableModel(f"{where}: {name} is {shown(value)}; expected {WORDS[kind]}.")


def is_of(value: Any, kind: type) -> bool:
    """Whether a JSON value is of a type of `WORDS`, as `read_field` understands it."""
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, kind)


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 300:
        return f"a number of more than {value.bit_length() * 3 // 10} digits"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
