"""The gate: do two networks compute the same function on real text, and what does each lose on it?

In: source, grown network, token windows. Out: how far logits are apart in fp32, in fp64 where the networks are small,
and in bf16 beside the source's own rounding; both losses. The networks are run from their files, block by block, so
that memory holds one block; what is kept are the hidden states of all windows and the logits of some tokens. Tensors
are taken as they lie in the file, past `hf.load_network` and the config's `tie_word_embeddings`: a check that reads
through the loader would share the loader's faults. `affordable` chooses the windows.
Letters: B windows, T tokens, N tokens at once, D hidden, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import rotary_tables
from model.config import ModelConfig
from model.hf import EMBEDDING, HEAD
from model.transformer import Block, Rotary, Transformer, norm_of

HEAD_ELEMENTS = 1 << 25  # of the head in the dtype of the arithmetic at once, 128 MiB in fp32

Advance = Callable[[float], None]
"""Told after every piece of work how many FLOPs it took."""


SMALL_PARAMETERS = 20_000_000  # fp64 on a CPU takes seconds up to here
LARGE_PARAMETERS = 1_000_000_000  # above it bf16 is left out: it says little that a smaller pair does not
MAX_FLOPS = 2e12  # of all passes: 20 to 30 seconds of one core, at phi-1.5 and phi-2 two windows of 126 tokens
MIN_WINDOWS, MIN_TOKENS = 2, 16
LOGITS = 1 << 25  # of one network at once, 128 MiB in fp32


@dataclass(frozen=True)
class StoredNetwork:
    """`state` may hold tensors in any dtype, and more of them than the shape names."""

    config: ModelConfig
    state: Mapping[str, Tensor]

    @property
    def embedding(self) -> Tensor:
        return self.state[EMBEDDING if EMBEDDING in self.state else HEAD]

    @property
    def head(self) -> Tensor:
        """The head's own matrix where there is one, whatever the config says."""
        return self.state[HEAD if HEAD in self.state else EMBEDDING]

    def flops(self, windows: int, tokens: int) -> float:
        """Of one forward pass: a third of what training takes (`ModelConfig.flops_per_token`)."""
        return windows * tokens * self.config.flops_per_token(tokens) / 3

    @torch.no_grad()
    def embedded(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """x_BTD before the first block (x_TD of ids_T); only the rows that are looked up are read."""
        return F.embedding(ids_BT.to(self.embedding.device), self.embedding).to(dtype)

    def block(self, index: int, dtype: torch.dtype) -> Block:
        """A block with its weights in `dtype`; what is stored in it stays in the mapped file."""
        with torch.device("meta"):
            block = Block(self.config, self.config.rotating[index])
        self._load(block, f"model.layers.{index}.", dtype)
        return block

    def final_norm(self, dtype: torch.dtype) -> nn.Module:
        with torch.device("meta"):
            norm = norm_of(self.config, self.config.hidden_size)
        self._load(norm, "model.final_layernorm.", dtype)
        return norm

    def _load(self, module: nn.Module, prefix: str, dtype: torch.dtype) -> None:
        module.load_state_dict({n: self.state[prefix + n].to(dtype) for n in module.state_dict()}, assign=True)

    @torch.no_grad()
    def hidden(self, ids_BT: Tensor, dtype: torch.dtype, advance: Advance = lambda flops: None) -> Tensor:
        """x_BTD after the final norm. All windows go through a block before the next one is read."""
        x_BTD = self.embedded(ids_BT, dtype)
        rotary = rotary_tables(self.config, 0, ids_BT.shape[1], like=x_BTD)
        for index in range(self.config.num_hidden_layers):
            _run(self.block(index, dtype), x_BTD, rotary)
            advance(self.flops(*ids_BT.shape) / (self.config.num_hidden_layers + 1))
        return self.final_norm(dtype)(x_BTD)

    @torch.no_grad()
    def logits(self, h_ND: Tensor) -> Tensor:
        """logits_NV in the dtype of `h_ND`, a piece of the vocabulary at a time."""
        bias_V = self.state["lm_head.bias"].to(h_ND.dtype) if self.config.head_bias else None
        logits_NV = h_ND.new_empty(len(h_ND), len(self.head))
        rows = max(1, HEAD_ELEMENTS // h_ND.shape[1])
        for start in range(0, len(self.head), rows):
            piece = slice(start, start + rows)
            logits_NV[:, piece] = F.linear(
                h_ND, self.head[piece].to(h_ND.dtype), None if bias_V is None else bias_V[piece]
            )
        return logits_NV


def _run(block: Block, x_BTD: Tensor, rotary: Rotary) -> None:
    """In place, and one window at a time: the MLP's inner states are the largest tensors of all."""
    for window in range(len(x_BTD)):
        x_BTD[window] = block.forward(x_BTD[window : window + 1], rotary, "auto")[0]


def stored(network: Transformer | StoredNetwork) -> StoredNetwork:
    """A network in memory as one that is stored."""
    return network if isinstance(network, StoredNetwork) else StoredNetwork(network.config, network.state_dict())


Network = StoredNetwork | Transformer


@dataclass(frozen=True)
class GateResult:
    """Both networks in one dtype; losses in nats per token. Logits that are not numbers make the differences NaN, which
    no tolerance admits."""

    max_abs_logit_diff: float
    max_rel_logit_diff: float
    """Largest difference divided by the source's largest |logit|."""
    source_loss: float
    grown_loss: float


@dataclass(frozen=True)
class Rounding:
    """bf16 against the fp32 source. An absolute tolerance fails on any trained model, so the ratios are what counts.

    Judge by `rms_ratio`: the ratio of two largest errors is a matter of single logits, and was seen between 0.6 and 2.5
    for exact networks of a few thousand parameters.
    """

    source_error: float
    """Largest logit error of the source itself, computed in bf16."""
    grown_error: float
    """The same of the grown network, against the same fp32 source."""
    source_rms: float
    """Root mean square error of the source's logits in bf16."""
    grown_rms: float
    """The same of the grown network."""
    loss_diff: float
    """|loss of the grown network in bf16 - loss of the source in fp32|, nats per token."""

    @property
    def ratio(self) -> float:
        """How much larger the grown network's largest error is than the source's own."""
        return _ratio(self.grown_error, self.source_error)

    @property
    def rms_ratio(self) -> float:
        """The same of the root mean squares; about 1 for an exact growth."""
        return _ratio(self.grown_rms, self.source_rms)


@dataclass(frozen=True)
class GateReport:
    """All that the gate knows: `fp64` up to `SMALL_PARAMETERS`, `bf16` up to `LARGE_PARAMETERS`."""

    fp32: GateResult
    fp64: GateResult | None
    bf16: Rounding | None

    def facts(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        facts = asdict(self)
        if self.bf16:
            facts["bf16"] |= {"ratio": self.bf16.ratio, "rms_ratio": self.bf16.rms_ratio}
        return facts


def examine(source: Network, grown: Network, input_ids_BT: Tensor, advance: Advance = lambda flops: None) -> GateReport:
    """Every comparison that the size allows, on all windows (at least 2 tokens each); `advance` hears of all work."""
    parameters = stored(grown).config.parameters
    exact, rounded = parameters <= SMALL_PARAMETERS, parameters <= LARGE_PARAMETERS
    source_run, grown_run = (_Run(stored(network), input_ids_BT, torch.float32, advance) for network in (source, grown))
    return GateReport(
        _compare(source_run, grown_run),
        _compare(source_run.in_dtype(torch.float64), grown_run.in_dtype(torch.float64)) if exact else None,
        _compare_rounded(source_run, *(run.in_dtype(torch.bfloat16) for run in (source_run, grown_run)))
        if rounded
        else None,
    )


def cost(source: Network | None, grown: Network, windows: int, tokens: int) -> float:
    """FLOPs of all passes of `examine` (of `mean_loss` without a source); one in fp64 counts twice."""
    parameters = stored(grown).config.parameters
    passes = 1 + 2 * (parameters <= SMALL_PARAMETERS) + (parameters <= LARGE_PARAMETERS) if source else 1
    return passes * sum(stored(network).flops(windows, tokens) for network in (source, grown) if network)


def affordable(source: Network | None, grown: Network, input_ids_BT: Tensor) -> Tensor:
    """As many of the first windows as `MAX_FLOPS` allows, at least `MIN_WINDOWS` where there are as many: where these
    cost more, their first tokens, at least `MIN_TOKENS`."""
    windows, tokens = input_ids_BT.shape
    least = min(windows, MIN_WINDOWS)
    fit = MAX_FLOPS / cost(source, grown, 1, tokens)
    if fit >= least:
        return input_ids_BT[: int(fit)]
    return input_ids_BT[:least, : max(MIN_TOKENS, int(tokens * fit / least))]


def mean_loss(network: Network, input_ids_BT: Tensor, advance: Advance = lambda flops: None) -> float:
    """Nats per token of one network in fp32, every window by itself."""
    losses = [
        _loss_sum(piece[0], labels)
        for labels, *piece in _logits(_Run(stored(network), input_ids_BT, torch.float32, advance))
    ]
    return sum(losses) / input_ids_BT[:, 1:].numel()


@dataclass
class _Run:
    """One network in one dtype on the windows."""

    network: StoredNetwork
    input_ids_BT: Tensor
    dtype: torch.dtype
    advance: Advance = field(default=lambda flops: None)

    def in_dtype(self, dtype: torch.dtype) -> "_Run":
        return _Run(self.network, self.input_ids_BT, dtype, self.advance)

    def done(self, flops: float) -> None:
        self.advance(flops * (2 if self.dtype == torch.float64 else 1))

    @functools.cached_property
    def hidden_BTD(self) -> Tensor:
        return self.network.hidden(self.input_ids_BT, self.dtype, self.done)

    def logits(self, window: int, tokens: slice) -> Tensor:
        """logits_NV in fp32, or in fp64 where that is the dtype of the run."""
        logits_NV = self.network.logits(self.hidden_BTD[window, tokens])
        return logits_NV if self.dtype == torch.float64 else logits_NV.float()


def _logits(*runs: _Run) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of windows: (the tokens that follow, one fewer at a window's end; logits_NV of each run)."""
    ids_BT = runs[0].input_ids_BT.to(runs[0].hidden_BTD.device)
    most = max(1, LOGITS // runs[0].network.config.vocab_size)
    for window, ids_T in enumerate(ids_BT):
        for start in range(0, len(ids_T), most):
            tokens = slice(start, start + most)
            yield ids_T[start + 1 : start + 1 + most], *(run.logits(window, tokens) for run in runs)
        for run in runs:
            run.done(run.network.flops(1, len(ids_T)) / (run.network.config.num_hidden_layers + 1))


def _compare(source: _Run, grown: _Run) -> GateResult:
    wide = torch.float64 if source.dtype == torch.float64 else torch.float32
    difference = largest = torch.zeros((), dtype=wide, device=source.hidden_BTD.device)
    losses = torch.zeros(2, dtype=torch.float64)
    for labels_N, logits_NV, grown_NV in _logits(source, grown):
        losses += torch.tensor([_loss_sum(logits, labels_N) for logits in (logits_NV, grown_NV)])
        difference = torch.maximum(difference, grown_NV.sub_(logits_NV).abs_().max())
        largest = torch.maximum(largest, logits_NV.abs_().max())
    source_loss, grown_loss = (losses / source.input_ids_BT[:, 1:].numel()).tolist()
    return GateResult(difference.item(), (difference / largest).item(), source_loss, grown_loss)


def _compare_rounded(reference: _Run, source: _Run, grown: _Run) -> Rounding:
    errors, squares, losses = torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for labels_N, exact_NV, *logits in _logits(reference, source, grown):
        losses += torch.tensor([_loss_sum(exact_NV, labels_N), _loss_sum(logits[1], labels_N)])
        errors_NV = [one.sub_(exact_NV) for one in logits]
        errors = torch.maximum(errors, torch.stack([error.abs().max().cpu() for error in errors_NV]))
        squares += torch.tensor([error.square().sum(dtype=torch.float64).item() for error in errors_NV])
    exact_loss, grown_loss = (losses / reference.input_ids_BT[:, 1:].numel()).tolist()
    source_error, grown_error = errors.tolist()
    count = reference.input_ids_BT.numel() * reference.network.config.vocab_size
    source_rms, grown_rms = (squares / count).sqrt().tolist()
    return Rounding(source_error, grown_error, source_rms, grown_rms, abs(grown_loss - exact_loss))


def _ratio(grown: float, source: float) -> float:
    return grown / source if source else float(grown > 0)


def _loss_sum(logits_NV: Tensor, labels_N: Tensor) -> float:
    return F.cross_entropy(logits_NV[: len(labels_N)], labels_N, reduction="sum").item()
