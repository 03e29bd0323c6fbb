"""Token ids to vectors."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class Embedding(nn.Module):
    """A table of one vector per token id, to be filled by the loader."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width), requires_grad=False)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return [tokens, width] for [tokens] int64."""
        return F.embedding(token_ids, self.weight)
