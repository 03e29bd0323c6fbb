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


def test_the_content_of_use_longest_ago_is_evicted_first_and_blank_blocks_before_any():
    pool = BlockPool(5)
    first, second, blank = pool.allocate(2), pool.allocate(2), pool.allocate(1)
    for block in first + second:
        pool.name(block, bytes([block]))
    pool.release(second)
    pool.release(first)
    pool.release(blank)
    assert (pool.free, pool.cached, pool.used) == (5, 4, 0)
    assert pool.allocate(3) == blank + second
    assert pool.evictions == 2
    assert pool.find([bytes([first[0]])]) == [first[0]]
    assert pool.find([bytes([second[0]])]) == []


def test_a_shared_block_is_free_only_when_nobody_uses_it():
    pool = BlockPool(2)
    [block] = pool.allocate(1)
    pool.name(block, b"a")
    pool.share(pool.find([b"a", b"unknown"]))
    pool.release([block])
    assert (pool.used, pool.cached) == (1, 0)
    pool.release([block])
    assert (pool.used, pool.cached) == (0, 1)
    pool.share([block])
    assert (pool.used, pool.cached) == (1, 0)
    assert pool.problems([[block]]) == []


def test_equal_blocks_are_not_merged_and_the_first_is_found():  # bug 8
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.name(first, b"a")
    pool.name(second, b"a")
    assert pool.find([b"a"]) == [first]
    pool.release([second])
    assert (pool.used, pool.cached) == (1, 0)
    assert pool.problems([[first]]) == []


def test_a_block_is_named_once_and_while_in_use():
    pool = BlockPool(2)
    [block] = pool.allocate(1)
    pool.name(block, b"a")
    with pytest.raises(ValueError, match="another content"):
        pool.name(block, b"b")
    pool.release([block])
    with pytest.raises(ValueError, match="not in use"):
        pool.name(block, b"a")


def test_forgotten_contents_are_not_found_and_their_blocks_are_blank_when_free():
    pool = BlockPool(3)
    used, freed = pool.allocate(2)
    pool.name(used, b"a")
    pool.name(freed, b"b")
    pool.release([freed])
    pool.forget([b"a", b"b", b"unknown"])
    assert pool.find([b"a"]) == pool.find([b"b"]) == []
    assert (pool.free, pool.cached) == (2, 0)
    assert pool.problems([[used]]) == []


def test_a_sound_pool_has_no_problems():
    pool = BlockPool(4)
    tables = [pool.allocate(1), pool.allocate(2)]
    assert pool.problems(tables) == []


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda _, tables: tables[0].append(tables[1][0]), "2 tables name it, 1 references"),
        (lambda _, tables: tables.pop(), "0 tables name it, 1 references"),
        (lambda pool, tables: pool._blank.append(tables[0][0]), "both free and in use"),
        (lambda pool, _: pool._blank.append(pool._blank[0]), "free 2 times"),
        (lambda pool, _: pool._blank.pop(), "are not 5"),
        (lambda pool, _: pool._block_of.update({b"x": 1}), "2 digests name 1 blocks"),
        (lambda pool, tables: pool._digest_of.update({tables[0][0]: b"x"}), "the content of no digest"),
        (lambda pool, _: pool.allocate(3) and pool._cached.update({5: None}), "cached without a digest"),
        (lambda pool, _: pool._digest_of.update({pool._blank[0]: b"y"}), "blank with a digest"),
    ],
)
def test_problems_are_found(spoil, problem):
    pool = BlockPool(5)
    tables = [pool.allocate(1), pool.allocate(1)]
    pool.name(tables[1][0], b"a")
    spoil(pool, tables)
    assert any(problem in found for found in pool.problems(tables))
