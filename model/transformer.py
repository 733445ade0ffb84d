"""The decoder of every family in plain PyTorch; what a family's network computes follows from its shape's properties.

In: token ids. Out: logits, hidden states, a summed loss, or generated ids. The state dict has one name per role in all
families, those of transformers' PhiForCausalLM where Phi has the role; `model.hf` translates at the files' edge.
A fresh tensor is a function of (seed, its name, shape) alone: weights N(0, initializer_range), the two projections that
write into the residual stream divided by sqrt(2 L) so that its variance does not grow with depth (GPT-2, Radford et al.
2019), norms 1, biases 0. So growth can stream the same values to disk, one tensor at a time.
No dropout: pretraining sees its text about once.
Letters: B batch, T tokens, D hidden, H query heads, G key-value heads, S cached tokens, K head size, R half the rotary
size, F feed-forward, V vocabulary, N = B x T.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model import cpu_kernels
from model.attention import Documents, causal_attention, decode_attention, rotary_tables, rotate
from model.config import BLOCK_NORMS, ModelConfig
from model.loss import chunked_cross_entropy, token_cross_entropy

ACTIVATION_CHECKPOINTING = ("none", "selective", "full")
RESIDUAL_WRITERS = ("self_attn.dense.weight", "mlp.fc2.weight")
Rotary = tuple[Tensor, Tensor]  # cos_TR, sin_TR


class Transformer(nn.Module):
    """A causal language model. Works in fp64, fp32 and bf16, and on the meta device.

    `activation_checkpointing`: "none" keeps all activations, in Phi 15 D a token and block. "selective" does not keep
    the activation's result (GELU: 4 D; SwiGLU: the product of its two halves) and computes it again: of all that is
    kept it costs the least time for the most bytes (one pass over memory; what remains are the inputs of matrix
    products and of the attention). "full" keeps each block's input, D, and recomputes the rest: a third more FLOPs.
    `attention_kernel`: "auto" (by device and length) or a name in `model.attention.ATTENTION`.
    `document_end_id`: a token that ends a document; attention then does not look across it. None: it looks at all
    tokens before. Positions continue from document to document: rotary attention knows differences only. Generation
    with a cache continues one document and takes no notice of it. `z_loss`: see `model.loss.chunked_cross_entropy`.
    """

    document_end_id: int | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.validate()
        self.model = Decoder(config)
        if config.tie_word_embeddings:
            self.lm_head = TiedHead(self.model.embed_tokens, config.head_bias)
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.activation_checkpointing = "none"
        self.attention_kernel = "auto"
        self.document_end_id = None
        self.z_loss = 0.0

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """logits_BTV. Builds them in full: for training and validation use `loss`."""
        return self.lm_head(self.hidden(input_ids_BT))

    def hidden(self, input_ids_BT: Tensor, cache: "KeyValueCache | None" = None) -> Tensor:
        """h_BTD after the final norm. With a cache the ids continue what it holds, and are added to it."""
        x_BTD = self.model.embed_tokens(input_ids_BT)
        start = cache.length if cache else 0
        rotary = rotary_tables(self.config, start, start + input_ids_BT.shape[1], like=x_BTD)
        end_id = None if cache else self.document_end_id
        documents = None if end_id is None else Documents.ended_by(end_id, input_ids_BT)
        training = torch.is_grad_enabled()
        recompute = self._recompute() if training else "none"
        for index, block in enumerate(self.model.layers):
            if cache is not None:
                x_BTD = block.forward(x_BTD, rotary, self.attention_kernel, cache, index)
            elif recompute == "full":
                x_BTD = recomputed(block, x_BTD, rotary, self.attention_kernel, documents=documents)
            else:
                run = block if training else block.forward
                selective = recompute == "selective"
                x_BTD = run(x_BTD, rotary, self.attention_kernel, documents=documents, recompute_activation=selective)
        return self.model.final_layernorm(x_BTD)

    def loss(self, input_ids_BT: Tensor, labels_BT: Tensor, chunk_tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Summed cross entropy in nats (fp32 scalar) and the number of labels it sums (int64 scalar, on the device).

        Labels are already shifted: labels[b, t] is the token that follows input_ids[b, t]; -100 is not counted.
        """
        return self.head_loss(self.hidden(input_ids_BT).flatten(0, 1), labels_BT, chunk_tokens)

    @torch.no_grad()
    def token_nats(self, input_ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
        """nats_BT: the cross entropy of each label, 0 where it is -100. Without gradients."""
        head = self.lm_head
        h_ND = self.hidden(input_ids_BT).flatten(0, 1)
        return token_cross_entropy(h_ND, head.weight, head.bias, labels_BT.flatten()).view(labels_BT.shape)

    def head_loss(self, h_ND: Tensor, labels_BT: Tensor, chunk_tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """`loss` from the hidden states on."""
        head = self.lm_head
        return chunked_cross_entropy(h_ND, head.weight, head.bias, labels_BT.flatten(), chunk_tokens, self.z_loss)

    @torch.no_grad()
    def initialize(self, seed: int) -> "Transformer":
        """Fresh weights, the same for the same seed on every device; returns itself."""
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_tensor(name, tuple(parameter.shape), self.config, seed))
        return self

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None, eos_token_id:
        int | Collection[int] | None = None, generator: torch.Generator | None = None,
    ) -> Iterator[int]:  # fmt: skip
        """Yields up to `max_new_tokens` ids that continue `input_ids` (1-D, or one row).

        Stops before (any of) `eos_token_id`, which is not yielded, and when the context of max_position_embeddings
        tokens is full. `temperature=0` takes the likeliest token. `generator` must live on the network's device. Raises
        ValueError for an empty prompt and for one that fills the context.
        """
        config, head = self.config, self.lm_head.weight
        stops = (eos_token_id,) if isinstance(eos_token_id, int) else eos_token_id or ()
        ids_1T = input_ids.reshape(1, -1).to(head.device)
        room = config.max_position_embeddings - ids_1T.shape[1]
        if not ids_1T.shape[1] or room < 1:
            raise ValueError(
                f"the prompt has {ids_1T.shape[1]} tokens; it needs at least 1 and, to leave room for an answer, fewer "
                f"than model.max_position_embeddings={config.max_position_embeddings}."
            )
        new_tokens = min(max_new_tokens, room)
        cache = KeyValueCache(config, 1, ids_1T.shape[1] + new_tokens, like=head)
        for _ in range(new_tokens):
            logits_V = self.lm_head(self.hidden(ids_1T, cache)[0, -1])
            token = _sample(logits_V.float(), temperature, top_k, generator)
            if token in stops:
                return
            yield token
            ids_1T = torch.full((1, 1), token, device=head.device)

    def compile_blocks(self) -> None:
        """torch.compile for each block's forward and backward pass in training; one compilation serves all blocks.

        Validation and generation stay as they are: their shapes change, and each would compile again. Where documents
        are masked only the MLPs are compiled: masks are made on first use, and flex_attention compiles itself.
        """
        fail_rather_than_run_eagerly()
        for block in self.model.layers:
            (block if self.document_end_id is None else block.mlp).compile(dynamic=False)  # type: ignore[operator]

    def _recompute(self) -> str:
        if self.activation_checkpointing not in ACTIVATION_CHECKPOINTING:
            raise ValueError(
                f"activation_checkpointing is {self.activation_checkpointing!r}; "
                f"it must be one of: {', '.join(ACTIVATION_CHECKPOINTING)}."
            )
        return self.activation_checkpointing


def fail_rather_than_run_eagerly() -> None:
    """torch.compile leaves a function uncompiled, in silence, once its code has 8 compilations: of all networks of a
    process, for each micro-batch and policy. More are allowed, and one too many is an error."""
    from torch._dynamo import config  # takes a second to import

    config.recompile_limit, config.fail_on_recompile_limit_hit = 64, True


def recomputed(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """torch's checkpoint. No random states are kept (nothing here draws), which on a GPU would be a host sync each."""
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)  # type: ignore[return-value]


class TiedHead(nn.Module):
    """The head whose matrix is the embedding's: parameters and state dict hold that matrix once, as `embed_tokens`."""

    def __init__(self, embedding: nn.Embedding, bias: bool) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, which torch does not search: a second name would be a second copy
        zeros = embedding.weight.new_zeros(embedding.num_embeddings) if bias else None
        self.bias = None if zeros is None else nn.Parameter(zeros)

    @property
    def weight(self) -> Tensor:
        return self._embedding[0].weight

    def forward(self, h_BTD: Tensor) -> Tensor:
        return F.linear(h_BTD, self.weight, self.bias)


class Decoder(nn.Module):
    """Holds the tensors that transformers names `model.*`; `Transformer.hidden` runs them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, rotates) for rotates in config.rotating)
        self.final_layernorm = norm_of(config, config.hidden_size)


def norm_of(config: ModelConfig, size: int) -> nn.Module:
    """The family's norm."""
    return (RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm)(size, eps=config.eps)


class RMSNorm(nn.RMSNorm):
    """x w / sqrt(mean(x^2) + eps), arXiv 1910.07467. Multiplied by the gain before it is rounded, as in OLMo 2; Llama's
    rounds first."""

    def forward(self, x: Tensor) -> Tensor:
        if cpu_kernels.usable(x) and x.dtype == self.weight.dtype:
            return cpu_kernels.rms_norm(x, self.weight, self.eps or 0.0)
        return super().forward(x)


class Block(nn.Module):
    """Attention and MLP, each added to the stream.

    parallel (Phi): x + attention(norm(x)) + mlp(norm(x)); pre (Llama): a norm before each of the two, the MLP after the
    attention; post (OLMo 2): they read the stream as it is, and what each of them adds is normalized.
    """

    input_layernorm: nn.Module
    mlp_layernorm: nn.Module
    attention_output_layernorm: nn.Module
    mlp_output_layernorm: nn.Module

    def __init__(self, config: ModelConfig, rotates: bool = True) -> None:
        super().__init__()
        self.layout = config.block
        for name in BLOCK_NORMS[config.block]:
            setattr(self, name, norm_of(config, config.hidden_size))
        self.self_attn = Attention(config, rotates)
        self.mlp = (SwiGLU if config.mlp == "swiglu" else MLP)(config)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, kernel: str, cache: "KeyValueCache | None" = None, index: int = 0,
        documents: Documents | None = None, recompute_activation: bool = False,
    ) -> Tensor:  # fmt: skip
        if self.layout == "post":
            attended_BTD = self.self_attn(x_BTD, rotary, kernel, cache, index, documents)
            x_BTD = x_BTD + self.attention_output_layernorm(attended_BTD)
            return x_BTD + self.mlp_output_layernorm(self.mlp(x_BTD, recompute_activation))
        n_BTD = self.input_layernorm(x_BTD)
        x_BTD = x_BTD + self.self_attn(n_BTD, rotary, kernel, cache, index, documents)
        if self.layout == "pre":
            n_BTD = self.mlp_layernorm(x_BTD)
        return x_BTD + self.mlp(n_BTD, recompute_activation)


class Attention(nn.Module):
    """Grouped-query attention with rotary embedding and, in some families, normalized queries and keys."""

    def __init__(self, config: ModelConfig, rotates: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = config.num_attention_heads, config.kv_heads, config.head_size
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.dense = nn.Linear(queries, config.hidden_size, bias=config.out_bias)
        self.rotates, self.qk_norm = rotates, config.qk_norm
        if self.qk_norm != "none":
            per_head = self.qk_norm == "head"
            self.q_layernorm = norm_of(config, self.head_size if per_head else queries)
            self.k_layernorm = norm_of(config, self.head_size if per_head else keys)

    def forward(
        self, n_BTD: Tensor, rotary: Rotary, kernel: str, cache: "KeyValueCache | None", index: int, documents:
        Documents | None = None,
    ) -> Tensor:  # fmt: skip
        q_BTX, k_BTY = self.q_proj(n_BTD), self.k_proj(n_BTD)
        if self.qk_norm == "full":
            q_BTX, k_BTY = self.q_layernorm(q_BTX), self.k_layernorm(k_BTY)
        q_BTHK = q_BTX.unflatten(-1, (self.heads, self.head_size))
        k_BTGK = k_BTY.unflatten(-1, (self.kv_heads, self.head_size))
        v_BGTK = self.v_proj(n_BTD).unflatten(-1, (self.kv_heads, self.head_size)).transpose(1, 2)
        if self.qk_norm == "head":
            q_BTHK, k_BTGK = self.q_layernorm(q_BTHK), self.k_layernorm(k_BTGK)
        q_BHTK, k_BGTK = q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2)
        if self.rotates:
            q_BHTK, k_BGTK = rotate(q_BHTK, *rotary), rotate(k_BGTK, *rotary)
        if cache is not None:
            k_BGTK, v_BGTK = cache.append(index, k_BGTK, v_BGTK)
        if q_BHTK.shape[2] == 1:
            o_BHTK = decode_attention(q_BHTK, k_BGTK, v_BGTK)
        else:
            o_BHTK = causal_attention(q_BHTK, k_BGTK, v_BGTK, kernel, documents)
        return self.dense(o_BHTK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """fc2(gelu(fc1 x)). torch's one fused tanh GELU: transformers' gelu_new keeps three more tensors of this width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.ff_bias)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.ff_bias)

    def forward(self, n_BTD: Tensor, recompute_activation: bool = False) -> Tensor:
        u_BTF = self.fc1(n_BTD)
        return recomputed(self._second_half, u_BTF) if recompute_activation else self._second_half(u_BTF)

    def _second_half(self, u_BTF: Tensor) -> Tensor:
        return self.fc2(cpu_kernels.gelu(u_BTF) if cpu_kernels.usable(u_BTF) else F.gelu(u_BTF, approximate="tanh"))


class SwiGLU(MLP):
    """fc2(silu(gate x) * fc1 x), arXiv 2002.05202."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.ff_bias)

    def forward(self, n_BTD: Tensor, recompute_activation: bool = False) -> Tensor:
        g_BTF, u_BTF = self.gate_proj(n_BTD), self.fc1(n_BTD)
        return recomputed(self._gated, g_BTF, u_BTF) if recompute_activation else self._gated(g_BTF, u_BTF)

    def _gated(self, g_BTF: Tensor, u_BTF: Tensor) -> Tensor:
        return self.fc2(cpu_kernels.swiglu(g_BTF, u_BTF) if cpu_kernels.usable(u_BTF) else F.silu(g_BTF) * u_BTF)


class KeyValueCache:
    """Keys and values of every block for up to `capacity` tokens, allocated once."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, like: Tensor) -> None:
        """Device and dtype are those of `like`."""
        shape = (config.num_hidden_layers, batch, config.kv_heads, capacity, config.head_size)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = 0

    def append(self, block: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the new tokens of one block; returns k_BGSK, v_BGSK of all tokens so far. The last block counts them."""
        if self.length and k_BGTK.shape[2] > 1:
            raise ValueError("a cache that holds tokens takes one more token at a time; give the prompt in one piece.")
        end = self.length + k_BGTK.shape[2]
        self.keys[block, :, :, self.length : end] = k_BGTK
        self.values[block, :, :, self.length : end] = v_BGTK
        if block == self.keys.shape[0] - 1:
            self.length = end
        return self.keys[block, :, :, :end], self.values[block, :, :, :end]


def _sample(logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < logits_V.shape[0]:
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], float("-inf"))
    return int(torch.multinomial(torch.softmax(logits_V / temperature, -1), 1, generator=generator))


def tensor_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the tensor's name only."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def initial_std(name: str, config: ModelConfig) -> float:
    """Standard deviation of the weight `name`; 0 for norms and biases, which start at constants."""
    if name.endswith(".bias") or "layernorm" in name:
        return 0.0
    depth = math.sqrt(2 * config.num_hidden_layers) if name.endswith(RESIDUAL_WRITERS) else 1.0
    return config.initializer_range / depth


def initial_tensor(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    """The fp32 start value of one tensor, on the CPU."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if "layernorm" in name:
        return torch.ones(shape)
    return torch.randn(shape, generator=tensor_generator(seed, name)) * initial_std(name, config)
