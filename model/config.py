"""The shape of a network, in the field names of Hugging Face's Phi, and what follows from it by arithmetic.

In: the `model` section of a config, or a `config.json`. Out: `ModelConfig`, which answers what a shape costs
(tensors, parameters, FLOPs) before anything is built, refuses shapes that cannot work, and writes the `config.json`
that `PhiForCausalLM` reads (checked against transformers 5, which keeps rotary settings in `rope_parameters`, and the
older flat fields that transformers 4 and llama.cpp read).
A `config.json` may come from a stranger: its fields are read by type, or refused in one sentence. Imports no torch.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")  # two names of the same function: the tanh approximation


MOST_LAYERS, MOST = 10_000, 2**31  # beyond what anyone trains: a stranger's file must not make us list its tensors
T = TypeVar("T")
WORDS: dict[type, str] = {
    str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "an object",
}  # fmt: skip


class ImpossibleShape(ValueError):
    """The model section describes a network that cannot be built or cannot be exported as Phi."""


@dataclass
class ModelConfig:
    """A Phi decoder's shape (parallel blocks, LayerNorm and Linear with bias, partial rotary embedding).

    `head_dim=None` means hidden_size / num_attention_heads, `num_key_value_heads=None` means one per attention head.
    Nothing is checked on construction, so that a config can be completed first: call `validate()`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    partial_rotary_factor: float = 0.5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-5
    qk_layernorm: bool = False
    hidden_act: str = "gelu_new"
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

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
        return int(self.head_size * self.partial_rotary_factor)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the state dict, by transformers' name, in the order in which files are written."""
        d, shapes = self.hidden_size, {}
        shapes["model.embed_tokens.weight"] = (self.vocab_size, d)
        for layer in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in self._block_shapes().items()}
        shapes |= _linear_or_norm("model.final_layernorm", (d,))
        head = _linear_or_norm("lm_head", (self.vocab_size, d))
        if self.tie_word_embeddings:  # one matrix, held once; the head keeps its bias
            del head["lm_head.weight"]
        return shapes | head

    def _block_shapes(self) -> dict[str, tuple[int, ...]]:
        d, ff = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_size, self.kv_heads * self.head_size
        shapes = _linear_or_norm("self_attn.q_proj", (queries, d))
        shapes |= _linear_or_norm("self_attn.k_proj", (keys, d))
        shapes |= _linear_or_norm("self_attn.v_proj", (keys, d))
        shapes |= _linear_or_norm("self_attn.dense", (d, queries))
        if self.qk_layernorm:
            shapes |= _linear_or_norm("self_attn.q_layernorm", (self.head_size,))
            shapes |= _linear_or_norm("self_attn.k_layernorm", (self.head_size,))
        shapes |= _linear_or_norm("mlp.fc1", (ff, d)) | _linear_or_norm("mlp.fc2", (d, ff))
        return shapes | _linear_or_norm("input_layernorm", (d,))

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
        self._check_sizes()
        self._check_heads()
        self._check_rotary()
        if self.hidden_act not in ACTIVATIONS:
            raise ImpossibleShape(
                f"model.hidden_act is {self.hidden_act!r}; this network computes the tanh GELU, "
                f"so write one of: {', '.join(ACTIVATIONS)}."
            )
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
        if self.qk_layernorm and self.head_size != d // heads:
            raise ImpossibleShape(
                f"model.qk_layernorm needs model.head_dim ({self.head_size}) to equal model.hidden_size / "
                f"model.num_attention_heads ({d // heads}), because transformers' Phi sizes those norms so."
            )

    def _check_rotary(self) -> None:
        size, factor = self.head_size, self.partial_rotary_factor
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

    def to_hf(
        self, bos_token_id: int | None = None, eos_token_id: int | list[int] | None = None, dtype: str = "float32",
        pad_token_id: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The content of a `config.json` for `PhiForCausalLM`; `dtype` as in "float32", "bfloat16"."""
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        content: dict[str, Any] = {"architectures": ["PhiForCausalLM"], "model_type": "phi"}
        content |= {field.name: getattr(self, field.name) for field in fields(self)}
        content["num_key_value_heads"] = self.kv_heads
        if self.head_dim is None:
            del content["head_dim"]  # transformers' Phi takes a null for a head size and fails
        content["rope_parameters"] = rope | {"partial_rotary_factor": self.partial_rotary_factor}
        content |= {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "use_cache": True}
        real = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
        if pad_token_id not in (None, bos_token_id, *real):  # transformers would freeze the row of a real token
            content["pad_token_id"] = pad_token_id
        content |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0}
        return content | {"dtype": dtype, "torch_dtype": dtype}  # new name, and the one that transformers 4 reads

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> "ModelConfig":
        """Reads a Phi `config.json`, old style (flat rotary fields) or new (`rope_parameters`); dropout is ignored.

        Raises `ImpossibleShape` for another model family, another activation or scaled rotary embeddings.
        """
        family = content.get("model_type")
        if family != "phi":
            raise ImpossibleShape(
                f"this is a model of the family {shown(family)}, and hornbook reads 'phi' (microsoft/phi-1, "
                f"microsoft/phi-1_5, microsoft/phi-2, and its own exports); choose such a source."
            )
        rope = _rotary(content)
        known = {field.name for field in fields(cls)} & set(content)
        values = {name: content[name] for name in known}
        values |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
        return cls(**(PHI_DEFAULTS | values)).validate()


# What transformers fills in where a Phi config.json is silent (old files leave out what equals the default).
PHI_DEFAULTS: dict[str, Any] = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
}


def _kind(field: Field) -> type:
    """The JSON type of a field, its null aside."""
    kinds: tuple[Any, ...] = get_args(field.type) or (field.type,)
    return next(kind for kind in kinds if kind is not type(None))


def _rotary(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings of a `config.json`, empty where it is silent. Raises `ImpossibleShape` for scaled ones.

    Where both forms stand in the file, the older `rope_scaling` decides, as in transformers 5."""
    forms = [read_field(content, name, dict, "config.json") for name in ("rope_scaling", "rope_parameters")]
    rope = next(filter(None, forms), {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ImpossibleShape(
            f"the rotary embedding is of type {shown(kind)}; only unscaled ('default') ones are read."
        )
    if nested := next((name for name, value in rope.items() if isinstance(value, dict)), None):
        raise ImpossibleShape(f"the rotary embedding has settings for {nested!r} alone; only one for all is read.")
    return rope


def _linear_or_norm(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


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
