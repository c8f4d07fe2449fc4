"""The split, and the order over epochs and processes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_lightning.data.order import Order, generator, random_state, split


@pytest.mark.parametrize(("validation", "expected"), [(7, 7), (0.2, 10), (1, 1), (49, 49)])
def test_split_is_disjoint_and_complete(validation: float, expected: int) -> None:
    train, held_out = split(50, validation, seed=3)
    assert len(held_out) == expected
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(50))
    assert train.tolist() == sorted(train.tolist())
    assert held_out.tolist() == sorted(held_out.tolist())


def test_split_is_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = split(1000, 100, seed=5)
    torch.manual_seed(2)
    again = split(1000, 100, seed=5)
    other = split(1000, 100, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    shared = set(first[1].tolist()) & set(other[1].tolist())
    assert len(shared) < 40  # 10 expected of 100


def test_limit_takes_a_share_of_training_and_leaves_validation() -> None:
    whole, held_out = split(1000, 100, seed=0)
    half, same = split(1000, 100, seed=0, limit=0.5)
    tenth, _ = split(1000, 100, seed=0, limit=0.1)
    assert (len(whole), len(half), len(tenth)) == (900, 450, 90)
    assert torch.equal(held_out, same)
    assert set(tenth.tolist()) < set(half.tolist()) < set(whole.tolist())


@pytest.mark.parametrize("validation", [50, 80, 0.001, 0.999])
def test_split_refuses_an_empty_part(validation: float) -> None:
    with pytest.raises(ValueError, match=rf"^validation={validation}: .*\b49\b.*\b50\b"):
        split(50, validation, seed=0)


def test_random_states_of_different_keys_differ() -> None:
    keys = [(a, b) for a in range(30) for b in range(30)]
    assert len({random_state(*key) for key in keys}) == len(keys)
    assert torch.rand(3, generator=generator(1, 2)).tolist() == torch.rand(3, generator=generator(1, 2)).tolist()


def every_rank(count: int, batch_size: int, world_size: int, *, train: bool, epoch: int = 0) -> list[list[list[int]]]:
    ranks = []
    for rank in range(world_size):
        order = Order(count, batch_size, train, train, seed=0, rank=rank, world_size=world_size)
        order.set_epoch(epoch)
        ranks.append([batch.tolist() for batch in order.batches()])
        assert len(ranks[-1]) == len(order)
    return ranks


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 200), st.integers(2, 40), st.integers(1, 5))
def test_evaluation_sees_each_sample_once_in_equally_many_batches(count: int, batch_size: int, world_size: int) -> None:
    if count < world_size * -(-count // (world_size * batch_size)):
        with pytest.raises(ValueError, match="eval_batch_size"):
            every_rank(count, batch_size, world_size, train=False)
        return
    ranks = every_rank(count, batch_size, world_size, train=False)
    assert sorted(i for rank in ranks for batch in rank for i in batch) == list(range(count))
    assert len({len(rank) for rank in ranks}) == 1
    sizes = [len(batch) for rank in ranks for batch in rank]
    assert min(sizes) >= 1
    assert max(sizes) <= min(batch_size, min(sizes) + 1)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_training_gives_every_rank_as_many_full_batches_as_possible(
    count: int, batch_size: int, world_size: int, epoch: int
) -> None:
    if count < batch_size * world_size:
        told = rf"^batch_size={batch_size * world_size}: .*\b{count}\b"
        with pytest.raises(ValueError, match=told):
            every_rank(count, batch_size, world_size, train=True)
        return
    ranks = every_rank(count, batch_size, world_size, train=True, epoch=epoch)
    seen = [i for rank in ranks for batch in rank for i in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(count))
    assert count - len(seen) < batch_size * world_size
    assert len({len(rank) for rank in ranks}) == 1
    assert {len(batch) for rank in ranks for batch in rank} == {batch_size}


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int) -> list[int]:
        return torch.cat(list(Order(100, 10, True, True, seed, epoch=epoch).batches())).tolist()

    assert drawn(0, 0) == drawn(0, 0)
    different = [drawn(0, 0), drawn(0, 1), drawn(1, 0), list(range(100))]
    assert all(sorted(order) == list(range(100)) for order in different)
    assert len({tuple(order) for order in different}) == 4


def test_processes_share_one_order() -> None:
    """Together, and batch by batch, two processes see what one with batches of twice the size sees."""
    alone = every_rank(103, 20, 1, train=True, epoch=2)[0]
    first, second = every_rank(103, 10, 2, train=True, epoch=2)
    assert [a + b for a, b in zip(first, second, strict=True)] == alone


def test_without_shuffling_the_order_is_ascending_in_every_epoch() -> None:
    order = Order(10, 4, False, False, seed=0)
    order.set_epoch(7)
    assert torch.cat(list(order.batches())).tolist() == list(range(10))
