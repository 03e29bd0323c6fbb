"""The block pool's own promises; how the scheduler uses it is tested with the scheduler."""

import pytest

from multimodel_server.engine.blocks import SINK, BlockPool


def test_the_sink_is_never_handed_out():
    pool = BlockPool(5)
    assert sorted(pool.allocate(5)) == [1, 2, 3, 4, 5]
    assert SINK not in range(1, 6)
    assert (pool.free, pool.used) == (0, 5)


def test_more_than_is_free_is_refused_and_nothing_is_taken():
    pool = BlockPool(3)
    pool.allocate(2)
    with pytest.raises(ValueError, match="2 blocks were asked for, 1 are free"):
        pool.allocate(2)
    assert pool.free == 1


@pytest.mark.parametrize("block", [1, SINK, 99])
def test_a_block_that_is_not_in_use_cannot_be_released(block):
    pool = BlockPool(3)
    pool.release(pool.allocate(3))
    with pytest.raises(ValueError, match=f"block {block} is released but not in use"):
        pool.release([block])


def test_freed_blocks_are_reused_oldest_first():
    pool = BlockPool(3)
    table = pool.allocate(3)
    pool.release(reversed(table))
    assert pool.allocate(3) == table[::-1]


def test_a_sound_pool_has_no_problems():
    pool = BlockPool(4)
    tables = [pool.allocate(1), pool.allocate(2)]
    assert pool.problems(tables) == []


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda _, tables: tables[0].append(tables[1][0]), "2 tables name it, 1 references"),
        (lambda _, tables: tables.pop(), "0 tables name it, 1 references"),
        (lambda pool, tables: pool._free.append(tables[0][0]), "both free and in use"),
        (lambda pool, _: pool._free.append(pool._free[0]), "free twice"),
        (lambda pool, _: pool._free.pop(), "are not 4"),
    ],
)
def test_problems_are_found(spoil, problem):
    pool = BlockPool(4)
    tables = [pool.allocate(1), pool.allocate(1)]
    spoil(pool, tables)
    assert any(problem in found for found in pool.problems(tables))
