"""Token ids to vectors."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class Embedding(nn.Module):
    """A table of one vector per token id, to be filled by the loader; lookups are multiplied by `scale`."""

    def __init__(self, vocabulary: int, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width), requires_grad=False)
        self.dtype = self.weight.dtype
        # Models are trained with the scale rounded to their element type: in bf16, 55.43 is 55.5.
        self.scale = float(torch.tensor(scale, dtype=self.dtype, device="cpu"))

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return [tokens, width] for [tokens] int64."""
        vectors = F.embedding(token_ids, self.weight).to(self.dtype)  # the table may be held in a narrower type
        return vectors if self.scale == 1.0 else vectors * self.scale
