"""What a step computes on a device, from what the host sent to the ids that it chose: the device alone does all of it.

A step in which every sequence has one new token is padded to one of a few sizes and reads and writes nothing but memory
that never moves: so it can be captured as a CUDA graph, the choice of the next ids inside. Other steps are computed as
they come.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from multimodel_server import kernels
from multimodel_server.engine.blocks import SINK
from multimodel_server.engine.graphs import CapturedStep, GraphPool, graph_sizes
from multimodel_server.engine.messages import Sampling
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk
from multimodel_server.engine.step_arrays import BlockTables, StepArrays, draws, step_arrays
from multimodel_server.engine.step_buffer import SentStep, StepBuffer
from multimodel_server.kernels import PagedLayout
from multimodel_server.layers.attention import LayerCache
from multimodel_server.models.decoder import Decoder

NO_REQUEST = Request("padding", [0], 1, Sampling(max_tokens=1), block_table=[SINK])
PADDING = Chunk(NO_REQUEST, 0, 1, samples=True)
"""Fills a batch up: its token goes to the sink, and it is given no length, so that it reads nothing."""


class Computed(NamedTuple):
    """A step that was launched; its ids will be in `DeviceSteps.ids`."""

    hidden: torch.Tensor
    """[tokens, hidden_size], in the order of the chunks, perhaps with padding behind them."""
    sampled: torch.Tensor
    """[rows, hidden_size]: what the ids follow from."""
    id_rows: list[int]
    """The row of each chunk that samples."""


class StepSizes(NamedTuple):
    """The largest step."""

    seqs: int
    tokens: int
    context: int
    """Tokens of the longest sequence."""


class DeviceSteps:
    """Computes steps over a decoder's cache; launches, never waits."""

    def __init__(self, decoder: Decoder, layers: Sequence[LayerCache], block_size: int, sizes: StepSizes) -> None:
        columns = -(-sizes.context // block_size)
        device = layers[0].keys.device
        self._decoder = decoder
        self._layers = layers
        self._block_size = block_size
        self._longest = columns * block_size
        self._host_tables = BlockTables(sizes.seqs, columns)
        most_tokens = max(sizes.tokens, sizes.seqs, sizes.context)  # without paging, a text is computed in one step
        self._buffer = StepBuffer(sizes.seqs, most_tokens, columns, device)
        self.sizes = graph_sizes(sizes.seqs)
        """The batch sizes of decoding steps, ascending."""
        self._sent: dict[int, SentStep] = {}
        self._captured: dict[int, CapturedStep] = {}

    @property
    def ids(self) -> torch.Tensor:
        """[seqs] int64: what the last step chose in each of its rows; -1 where logits were not finite."""
        return self._buffer.ids

    def mixed(self, chunks: Sequence[Chunk], rows_before: Mapping[Request, int]) -> Computed:
        """Launch a step of any chunks; `rows_before` tells in which rows the last step chose tokens of theirs."""
        arrays = step_arrays(chunks, self._block_size, self._host_tables, rows_before)
        sampling = [chunk for chunk in chunks if chunk.samples]
        packed = self._buffer.packed(arrays, draws(sampling))
        self._buffer.send(packed)
        sent = self._buffer.sent(packed)
        query_lens = tuple(chunk.end - chunk.start for chunk in chunks)
        hidden = self._hidden(sent, self._layout(sent, query_lens, tuple(arrays.seq_lens.tolist())))
        last = hidden.index_select(0, sent.sampled_rows)
        if sampling:
            self._choose(last, sent)
        return Computed(hidden, last, list(range(len(sampling))))

    def decode(self, chunks: Sequence[Chunk], rows_before: Mapping[Request, int]) -> Computed:
        """Launch a step of one new token for each of up to `seqs` sequences."""
        size = next(size for size in self.sizes if size >= len(chunks))
        arrays = self._send_padded(chunks, rows_before, size)
        captured = self._captured.get(size)
        hidden = captured.replay() if captured else self._decoded(size, tuple(arrays.seq_lens.tolist()))
        return Computed(hidden, hidden, [row for row, chunk in enumerate(chunks) if chunk.samples])

    def capture(self) -> None:
        """Capture decoding at every size, the largest first: it takes the memory that the others then share."""
        pool = GraphPool()
        for size in reversed(self.sizes):
            self._send_padded([], {}, size)
            # A graph takes the lengths from the device; those of the host bound what it is laid out for.
            self._captured[size] = pool.captured(partial(self._decoded, size, (self._longest,) * size))

    def _send_padded(self, chunks: Sequence[Chunk], rows_before: Mapping[Request, int], size: int) -> StepArrays:
        """Send a decoding step; all of its rows are sampled, so that those of one size differ in nothing but values."""
        padded = [*chunks, *[PADDING] * (size - len(chunks))]
        arrays = step_arrays(padded, self._block_size, self._host_tables, rows_before)
        arrays = arrays._replace(sampled_rows=np.arange(size))
        arrays.seq_lens[len(chunks) :] = 0
        packed = self._buffer.packed(arrays, draws(padded))
        self._buffer.send(packed)
        if size not in self._sent:
            self._sent[size] = self._buffer.sent(packed)
        return arrays

    def _decoded(self, size: int, seq_lens: tuple[int, ...]) -> torch.Tensor:
        """Compute what `_send_padded` sent last, for a size; return the hidden states, which the chosen ids follow."""
        sent = self._sent[size]
        hidden = self._hidden(sent, self._layout(sent, (1,) * size, seq_lens))
        self._choose(hidden, sent)
        return hidden

    def _hidden(self, sent: SentStep, layout: PagedLayout) -> torch.Tensor:
        token_ids = self._buffer.tokens_at(sent.token_sources)
        hidden: torch.Tensor = self._decoder(token_ids, sent.positions, self._layers, layout)
        return hidden

    def _choose(self, hidden: torch.Tensor, sent: SentStep) -> None:
        chosen = kernels.sample(self._decoder.narrow_logits(hidden), sent.draws)
        self._buffer.ids[: len(chosen)].copy_(chosen)

    def _layout(self, sent: SentStep, query_lens: tuple[int, ...], seq_lens: tuple[int, ...]) -> PagedLayout:
        return PagedLayout(
            block_tables=self._buffer.block_tables[: len(seq_lens)],
            query_start_loc=sent.query_start_loc,
            seq_lens=sent.seq_lens,
            slot_mapping=sent.slots,
            host_query_lens=query_lens,
            host_seq_lens=seq_lens,
        )
