"""Independent work on one core each."""

from __future__ import annotations

import pytest
import torch

from mast3r_sfm.cpu import map_on_cores


@pytest.fixture
def three_cores() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_cores")
def test_results_come_in_order_and_the_threads_are_as_before() -> None:
    weight = torch.ones(4, 4, requires_grad=True)

    def work(k: int) -> tuple[int, int, bool]:
        return k, torch.get_num_threads(), (weight * k).requires_grad

    results = map_on_cores(work, range(10))
    assert results == [(k, 1, False) for k in range(10)]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_cores")
def test_a_single_item_has_all_cores() -> None:
    assert map_on_cores(lambda _: torch.get_num_threads(), [0]) == [3]


@pytest.mark.usefixtures("three_cores")
def test_an_error_is_raised() -> None:
    def fail(k: int) -> int:
        if k == 2:
            raise ValueError("third")
        return k

    with pytest.raises(ValueError, match="third"):
        map_on_cores(fail, range(6))
    assert torch.get_num_threads() == 3
