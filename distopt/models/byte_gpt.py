"""A small GPT on bytes: a plain pre-norm transformer decoder that returns its own loss."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distopt.errors import ConfigError


class ByteGPT(nn.Module):
    """Predicts each next byte of a window of text.

    Args:
        vocab_size: Number of token values; 256 for bytes.
        context: Longest sequence, in tokens.
        width: Size of the residual stream.
        depth: Number of blocks.
        heads: Attention heads per block; they divide the width.
        tie: Let the output projection be the embedding: `head.weight is embedding.weight`.
        dropout: Probability, after the embedding and at the end of every branch.

    Raises:
        ConfigError: `heads` does not divide `width`.
    """

    def __init__(
        self,
        vocab_size: int = 256,
        context: int = 64,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        tie: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError("heads", f"does not divide the width, {width}", given=heads)
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.init_weights()
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """The loss on a batch of windows.

        Args:
            tokens: (batch, length + 1) of uint8 or int64, with length ≤ context. The first `length`
                tokens of a window are the input, the last `length` the targets.

        Returns:
            `loss`: the mean cross entropy over batch × length, in nats per token.

        Raises:
            ConfigError: The windows are longer than `context`.
        """
        inputs, targets = tokens[:, :-1].long(), tokens[:, 1:].long()
        length = inputs.shape[1]
        limit = self.positions.num_embeddings
        if length > limit:
            problem, allowed = "shorter than the sequences of the data", f"at least {length}"
            raise ConfigError("model.context", problem, given=limit, allowed=allowed)
        x = self.dropout(self.embedding(inputs) + self.positions(torch.arange(length, device=tokens.device)))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x)).float()
        return {"loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten())}

    def init_weights(self) -> None:
        """GPT-2's, and of the same size at any width; the ends of branches are scaled for the depth."""
        depth = len(self.blocks)
        std = 0.02 * (768 / self.embedding.embedding_dim) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                ends_branch = name.endswith(("attention.out.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=std / (2 * depth) ** 0.5 if ends_branch else std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


class Block(nn.Module):
    """Attention, then an MLP, each normed before and added to the residual stream."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(up=nn.Linear(width, 4 * width), gelu=nn.GELU(), down=nn.Linear(4 * width, width))
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        out: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return out


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # (batch, length, 3 × width) → three of (batch, heads, length, width / heads)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return mixed
