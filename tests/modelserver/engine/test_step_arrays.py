"""A schedule as arrays, step after step, and their way to the device in one copy."""

import random

import numpy as np
import pytest
import torch

from multimodel_server.engine.blocks import SINK
from multimodel_server.engine.messages import Sampling
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk
from multimodel_server.engine.step_arrays import BlockTables, draws, step_arrays
from multimodel_server.engine.step_buffer import ALIGNMENT, StepBuffer

BLOCK = 4
SEQS, COLUMNS, TOKENS = 6, 9, 40


def request(tokens, prompt=None, **sampling):
    made = Request("r", list(range(100, 100 + tokens)), prompt or tokens, Sampling(max_tokens=9, **sampling))
    made.block_table = random.sample(range(1, 99), -(-tokens // BLOCK))
    return made


def plainly(chunks):
    """Return slots and tables one token at a time."""
    tables = [chunk.request.block_table for chunk in chunks]
    width = max(map(len, tables))
    slots = [
        table[position // BLOCK] * BLOCK + position % BLOCK
        for chunk, table in zip(chunks, tables, strict=True)
        for position in range(chunk.start, chunk.end)
    ]
    return slots, [table + [SINK] * (width - len(table)) for table in tables]


def test_tables_follow_requests_that_grow_come_and_go():
    random.seed(3)
    tables, alive = BlockTables(SEQS, COLUMNS), []
    for _ in range(300):
        alive = [one for one in alive if random.random() < 0.9]
        while len(alive) < random.randint(1, SEQS):
            alive.insert(random.randint(0, len(alive)), request(random.randint(1, 20)))
        for one in alive:
            if random.random() < 0.3 and len(one.token_ids) < COLUMNS * BLOCK:  # grows in place
                one.token_ids.append(7)
                one.block_table += [random.randint(1, 98)] * (-(-len(one.token_ids) // BLOCK) - len(one.block_table))
            elif random.random() < 0.1:  # was preempted, and starts again elsewhere
                one.block_table = random.sample(range(1, 99), len(one.block_table))
        chunks = []
        for one in alive:
            start = random.randrange(len(one.token_ids))
            chunks.append(Chunk(one, start, random.randint(start + 1, len(one.token_ids)), random.random() < 0.5))
        arrays = step_arrays(chunks, BLOCK, tables, {})
        slots, padded = plainly(chunks)
        assert arrays.slots.tolist() == slots
        assert arrays.block_tables.tolist() == padded
        assert arrays.positions.tolist() == [place for chunk in chunks for place in range(chunk.start, chunk.end)]
        assert arrays.seq_lens.tolist() == [chunk.end for chunk in chunks]
        lasts = np.cumsum([chunk.end - chunk.start for chunk in chunks]) - 1
        assert arrays.query_start_loc.tolist() == [0, *(lasts + 1)]
        assert arrays.sampled_rows.tolist() == [
            last for last, chunk in zip(lasts, chunks, strict=True) if chunk.samples
        ]


def test_an_unknown_token_is_named_by_the_row_that_chooses_it():
    known, unknown = request(3), request(3)
    chunks = [Chunk(known, 2, 3, True), Chunk(unknown, 3, 4, True)]
    arrays = step_arrays(chunks, BLOCK, BlockTables(2, COLUMNS), {known: 0, unknown: 5})
    assert arrays.token_ids.tolist() == [102, ~5]
    with pytest.raises(KeyError):
        step_arrays(chunks, BLOCK, BlockTables(2, COLUMNS), {known: 0})


def test_a_draw_is_known_by_seed_and_number_of_the_token():
    of = draws([Chunk(request(9, prompt=4, seed=2**64 - 2, temperature=0.5, top_k=3), 8, 9, True)])
    assert (of.seed.item(), of.position.item(), of.temperature.item(), of.top_k.item()) == (-2, 5, 0.5, 3)
    assert draws([Chunk(request(1, top_k=2**40), 0, 1, True)]).top_k > 10**9


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("decoding", [0, 1, 2, 5])
def test_what_is_sent_arrives_at_aligned_places(decoding, tokens):
    """Kernels are compiled again for other alignments, which no request should wait for."""
    buffer = StepBuffer(SEQS, TOKENS, COLUMNS, torch.device("cpu"))
    buffer.ids.copy_(torch.tensor([31, 32, 33, -1, 35, 36]))
    requests = [request(13) for _ in range(decoding)]
    rows_before = {one: 5 - row for row, one in enumerate(requests)}
    chunks = [*(Chunk(one, 13, 14, True) for one in requests), Chunk(request(tokens), 0, tokens, True)]
    arrays, choice = step_arrays(chunks, BLOCK, BlockTables(SEQS, COLUMNS), rows_before), draws(chunks)
    packed = buffer.packed(arrays, choice)
    buffer.send(packed)
    sent = buffer.sent(packed)
    assert all(field.storage_offset() * field.element_size() % ALIGNMENT == 0 for field in [*sent[:-1], *sent.draws])
    assert buffer.tokens_at(sent.token_sources).tolist() == [*[36, 35, 0, 33, 32][:decoding], *range(100, 100 + tokens)]
    assert [field.tolist() for field in sent[1:-1]] == [array.tolist() for array in arrays[1:-1]]
    assert [field.tolist() for field in sent.draws] == [array.tolist() for array in choice]
    rows, columns = arrays.block_tables.shape
    assert buffer.block_tables[:rows, :columns].tolist() == arrays.block_tables.tolist()


def test_the_largest_step_has_room():
    buffer = StepBuffer(SEQS, TOKENS, COLUMNS, torch.device("cpu"))
    requests = [request(COLUMNS * BLOCK) for _ in range(SEQS)]
    lengths = [TOKENS - 5 * (SEQS - 1), *[5] * (SEQS - 1)]
    chunks = [Chunk(one, 36 - length, 36, True) for one, length in zip(requests, lengths, strict=True)]
    packed = buffer.packed(step_arrays(chunks, BLOCK, BlockTables(SEQS, COLUMNS), {}), draws(chunks))
    buffer.send(packed)
    assert buffer.block_tables.tolist() == [one.block_table for one in requests]
