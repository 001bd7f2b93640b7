"""The capacity formula and the simulation that checks it, against each other and against queueing theory."""

import math
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.outcomes import percentile
from benchmarks.simulation import Acts, Fleet, Node, poisson, simulate

NODE = Node({1: 0.010, 2: 0.012, 4: 0.016, 8: 0.024, 16: 0.040}, each=0.001, passes=1, most=16)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_at_a_time_it_waits_as_an_m_d_1_queue_does(load: float) -> None:
    service_s = 0.02
    alone = Node({1: service_s}, each=0.0, passes=1, most=1)
    found = simulate(alone, poisson(1, (load / service_s, 2000.0)), 1)

    # Pollaczek and Khinchine: the mean wait of M/D/1 is rho s / (2 (1 - rho)).
    assert service_s + load * service_s / (2 * (1 - load)) == pytest.approx(mean(found.latencies), rel=0.06)


@given(rate=st.floats(1, 350), more=st.floats(1, 1.2))
def test_more_a_second_never_takes_less_time(rate: float, more: float) -> None:
    assert NODE.p99(rate) <= NODE.p99(rate * more)
    assert NODE.batch(rate) <= NODE.batch(rate * more)


@given(p99=st.floats(0.001, 1))
def test_the_rate_within_an_objective_has_it(p99: float) -> None:
    rate = NODE.rate_within(p99, 0.8)

    assert 0 <= rate <= 0.8 * NODE.peak
    assert not rate or NODE.p99(rate) <= p99 * (1 + 1e-9)


NODES = {
    "batches pay": NODE,
    "two passes": Node({1: 0.0004, 8: 0.0006, 32: 0.0012}, each=0.0002, passes=2, most=32),
    "batches pay little": Node({1: 0.04, 2: 0.07, 4: 0.13}, each=0.001, passes=1, most=4),
    "no batches": Node({1: 0.02}, each=0.0, passes=1, most=1),
}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", NODES)
def test_formula_and_simulation_agree(name: str, share: float) -> None:
    node = NODES[name]
    rate = share * node.peak
    found = simulate(node, poisson(2, (rate, 20_000 * node.cycle(1))), 1)

    assert 0.75 <= node.p99(rate) / percentile(found.latencies, 0.99) <= 3


def test_beyond_its_peak_a_node_answers_its_peak_and_refuses_the_rest() -> None:
    arrivals = poisson(3, (1.5 * NODE.peak, 60.0))
    found = simulate(NODE, arrivals, 1)

    assert math.isinf(NODE.p99(1.5 * NODE.peak))
    assert len(arrivals) == len(found.latencies) + found.refused
    assert NODE.peak == pytest.approx((len(found.latencies) - 1024) / 60.0, rel=0.02)


def test_a_measured_peak_is_the_peak_of_the_node_that_is_given_it() -> None:
    assert 200.0 == pytest.approx(NODE.with_peak(200.0).peak)


def test_what_a_lost_node_had_is_answered_by_the_others() -> None:
    def lost(fleet: Fleet) -> Acts:
        yield fleet.env.timeout(10.0)
        fleet.lose()

    arrivals = poisson(4, (1.2 * NODE.peak, 30.0))
    found = simulate(NODE, arrivals, 3, lost)

    assert (len(arrivals), 0) == (len(found.latencies), found.refused)
    assert 2 == len(found.replicas)


def test_nodes_are_added_late_and_no_more_than_may_be() -> None:
    arrivals = poisson(5, (2.5 * NODE.peak, 60.0))
    found = simulate(NODE, arrivals, 1, lambda fleet: fleet.autoscale(target=8, lag=5.0, most=4))

    assert 4 == len(found.replicas) == found.most
    assert 1.0 < max(found.latencies), "one node alone was not enough until then"
    assert percentile(found.latencies[-2000:], 0.99) < NODE.p99(0.8 * NODE.peak)
