"""A GPT-2-style model and loop as nanoGPT has them, written for this comparison: the small file many people train with.

Sequential blocks, learned positions, tied head, no biases, exact GELU, SDPA, full logits, AdamW with decay on matrices.
fp32 on a CPU, as there; `autocast` gives it bf16 products, which nanoGPT keeps for a GPU.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.train_bench.shapes import VOCAB_SIZE, Shape


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(hidden, bias=False), nn.LayerNorm(hidden, bias=False)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.up, self.down = nn.Linear(hidden, 4 * hidden, bias=False), nn.Linear(4 * hidden, hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = (
            part.view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm_1(x_BTD)).split(D, 2)
        )
        y_BTD = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).contiguous().view(B, T, D)
        x_BTD = x_BTD + self.out(y_BTD)
        return x_BTD + self.down(F.gelu(self.up(self.norm_2(x_BTD))))


class GPT(nn.Module):
    """`loss(inputs, labels)`: mean nats per token."""

    def __init__(self, shape: Shape, vocab_size: int = VOCAB_SIZE) -> None:
        super().__init__()
        self.tokens, self.positions = (nn.Embedding(n, shape.hidden) for n in (vocab_size, shape.tokens))
        self.blocks = nn.ModuleList(Block(shape.hidden, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.hidden, bias=False)
        self.head = nn.Linear(shape.hidden, vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                written = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * shape.layers) if written else 1.0))

    def loss(self, inputs_BT: Tensor, labels_BT: Tensor) -> Tensor:
        x_BTD = self.tokens(inputs_BT) + self.positions(torch.arange(inputs_BT.shape[1]))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV = self.head(self.norm(x_BTD))
        return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=-1)


def optimizer(model: GPT, learning_rate: float, beta2: float, weight_decay: float = 0.1) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2))


def step(model: GPT, adamw: torch.optim.Optimizer, autocast: bool) -> Callable[[Tensor, Tensor], float]:
    """One optimizer step on inputs and labels; returns its loss."""

    def run(inputs_BT: Tensor, labels_BT: Tensor) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
            loss = model.loss(inputs_BT, labels_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.item()

    return run
