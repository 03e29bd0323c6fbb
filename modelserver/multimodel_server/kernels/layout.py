"""Where the tokens of one step stand in the paged cache: the part of a batch that kernels need."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class PagedLayout:
    """Sequences of differing lengths, their new tokens packed one after another.

    Sequence `i` has `seq_lens[i]` tokens; its last `query_start_loc[i + 1] - query_start_loc[i]` ones are new. One of
    no length pads the batch: it has a row of tokens like any other, and nothing to attend to.

    The lengths come twice, so that an implementation that plans on the host need not wait for the device. A layout
    equals itself alone: what is planned for one step can be kept for all layers. Where a captured step is replayed with
    other lengths, the host's hold for the numbers of new tokens only.
    """

    block_tables: torch.Tensor  # [seqs, max_blocks] int32; entries past a sequence's end name the sink, block 0
    query_start_loc: torch.Tensor  # [seqs + 1] int32
    seq_lens: torch.Tensor  # [seqs] int32, new tokens included
    slot_mapping: torch.Tensor  # [tokens] int64: block * block_size + offset
    host_query_lens: tuple[int, ...]
    host_seq_lens: tuple[int, ...]
