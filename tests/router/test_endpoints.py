"""Which endpoint takes a request, and that no count leaks."""

from multimodel_router.balance import least_load
from multimodel_router.endpoints import Endpoints
from multimodel_router.fleet import Endpoint

A, B, C = (Endpoint("192.0.2.1", port) for port in (1, 2, 3))


def test_the_least_loaded_takes_it_and_the_first_of_a_tie() -> None:
    assert least_load([A, B, C], {A: 2, B: 1, C: 1}) == B
    assert least_load([A, B], {}) == A
    assert least_load([A, B], {A: 1}) == B


def test_leases_spread_and_give_back() -> None:
    endpoints = Endpoints()
    leases = [endpoints.acquire([A, B]) for _ in range(4)]
    assert endpoints.load == {A: 2, B: 2}
    leases[1].release()
    leases[1].release()
    assert endpoints.load == {A: 2, B: 1}
    assert endpoints.acquire([A, B]).endpoint == B
    for lease in leases:
        lease.release()
    assert endpoints.load == {B: 1}
