"""What makes a batch of a list of samples, where torch's default_collate does not do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def causal_lm(samples: Sequence[Tensor]) -> dict[str, Tensor]:
    """Windows of token ids → the batch of a language model that shifts its labels itself (transformers').

    Args:
        samples: Each of shape (context,), of any integer type.

    Returns:
        `input_ids` and `labels`, the same int64 values of shape (batch, context).
    """
    ids = torch.stack(list(samples)).long()
    return {"input_ids": ids, "labels": ids}
