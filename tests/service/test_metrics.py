"""Metrics add up over processes, and read as prometheus_client's own would."""

import threading
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from models.errors import ImageError
from service.errors import BY_CODE, ClientDisconnect, Failed, Refused, Rejected, ServiceError, leaves
from service.metrics import (
    BATCH_SIZE,
    CONFIDENCE,
    COUNTED,
    DISCONNECTED,
    DISCONNECTS,
    IMAGES,
    IMAGES_REJECTED,
    MODEL_INFO,
    PREDICTIONS,
    QUEUE_DEPTH,
    REFUSALS,
    REFUSED,
    REJECTIONS,
    REQUESTS,
    ROUTES,
    STAGE_BUCKETS,
    STAGE_SECONDS,
    STATUSES,
    Counted,
    Family,
    Metrics,
    Scrape,
)
from service.transport import Transport

CLASSES = ("cat", "dog")
MODEL = ("shapes", "1", "0123", "cpu", "fp32")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def processes(count: int, classes: Sequence[str] = CLASSES) -> tuple[list[Metrics], Scrape]:
    """The metrics of so many processes, in the shared memory that they have in a service, and all of them together."""
    made = [Metrics(classes) for _ in range(count)]
    transport = Transport(count - 1, 1, 1 << 20, made[0].size)
    for process, metrics in enumerate(made):
        metrics.cells = transport.cells(process)
    return made, Scrape([Counted("test", made[0], transport.all_cells())], lambda: [MODEL])


def samples(scrape: Scrape) -> Samples:
    """What the text says, read by prometheus_client: the value by the sample's name and labels."""
    families = text_string_to_metric_families(scrape.text().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(scrape: Scrape, name: str, /, **labels: str) -> float:
    return samples(scrape)[name, frozenset(labels.items())]


def test_every_family_has_its_help_and_type_once() -> None:
    (_, scrape) = processes(2)
    lines = scrape.text().decode().splitlines()
    kinds = {
        family.name: "histogram" if family.buckets else "gauge" if family.gauge else "counter"
        for family in (*COUNTED, MODEL_INFO)
    }

    assert sorted(f"# HELP {family.name} {family.help}" for family in (*COUNTED, MODEL_INFO)) == sorted(
        line for line in lines if line.startswith("# HELP")
    )
    assert sorted(f"# TYPE {name} {kind}" for name, kind in kinds.items()) == sorted(
        line for line in lines if line.startswith("# TYPE")
    )


def test_names_end_in_their_unit_or_in_total_and_start_with_darkroom() -> None:
    for family in COUNTED:
        assert family.name.startswith("darkroom_")
        assert family.name.endswith("_total") == (not family.buckets and not family.gauge)
        assert family.help


def test_counters_and_gauges_add_up_over_processes() -> None:
    (first, second, third), scrape = processes(3)
    first.add(REQUESTS, "/predict", "200", n=2)
    second.add(REQUESTS, "/predict", "200")
    second.add(REQUESTS, "/health", "503")
    first.add(QUEUE_DEPTH, n=5)
    third.add(QUEUE_DEPTH, n=-4)

    assert 3 == value(scrape, "darkroom_requests_total", route="/predict", status="200")
    assert 1 == value(scrape, "darkroom_requests_total", route="/health", status="503")
    assert 1 == value(scrape, "darkroom_queue_depth")


def test_histograms_add_up_over_processes_and_their_buckets_are_cumulative() -> None:
    (first, second), scrape = processes(2)
    for metrics, sizes in ((first, [1, 2, 3]), (second, [2, 1000, 5000])):
        for size in sizes:
            metrics.observe(BATCH_SIZE, size)

    found = [
        value(scrape, "darkroom_batch_size_bucket", le=bound) for bound in ("1.0", "2.0", "4.0", "512.0", "1024.0")
    ]
    assert [1, 3, 4, 4, 5] == found
    assert 6 == value(scrape, "darkroom_batch_size_bucket", le="+Inf")
    assert (6, 6008) == (value(scrape, "darkroom_batch_size_count"), value(scrape, "darkroom_batch_size_sum"))


def test_a_oneon_a_bound_belongs_to_its_bucket() -> None:
    (metrics, _), scrape = processes(2)
    for bound in STAGE_BUCKETS:
        metrics.observe(STAGE_SECONDS, bound, "decode")

    found = [
        value(scrape, "darkroom_stage_duration_seconds_bucket", stage="decode", le=repr(float(bound)))
        for bound in STAGE_BUCKETS
        if bound >= 1e-3
    ]
    assert [float(n) for n in range(len(STAGE_BUCKETS) - len(found) + 1, len(STAGE_BUCKETS) + 1)] == found


def test_an_observation_of_several_counts_as_many() -> None:
    (metrics, _), scrape = processes(2)
    metrics.observe(STAGE_SECONDS, 0.5, "inference", n=8)

    assert 8 == value(scrape, "darkroom_stage_duration_seconds_count", stage="inference")
    assert 4.0 == value(scrape, "darkroom_stage_duration_seconds_sum", stage="inference")


@given(st.lists(st.floats(0, 100)))
def test_many_observations_at_once_are_as_one_after_the_other(seconds: list[float]) -> None:
    (together, _), scrape_together = processes(2)
    (apart, _), scrape_apart = processes(2)
    together.observe_each(STAGE_SECONDS, seconds, "queue")
    for one in seconds:
        apart.observe(STAGE_SECONDS, one, "queue")

    assert samples(scrape_apart) == pytest.approx(samples(scrape_together))


def test_known_reasons_and_stages_are_there_before_anything_has_happened_and_requests_only_after() -> None:
    (_, scrape) = processes(2)
    found = samples(scrape)

    for reason in REJECTIONS:
        assert 0 == found["darkroom_images_rejected_total", frozenset({("reason", reason)})]
    for reason in REFUSALS:
        assert 0 == found["darkroom_refused_total", frozenset({("reason", reason)})]
    assert 0 == found["darkroom_images_total", frozenset()]
    assert not [name for name, _ in found if name.startswith(("darkroom_requests_total", "darkroom_predictions_total"))]


def test_classes_are_labels_once_they_were_predicted() -> None:
    (first, second), scrape = processes(2)
    first.add(PREDICTIONS, "dog")
    second.add(PREDICTIONS, "dog")

    predicted = {labels: n for (name, labels), n in samples(scrape).items() if name == "darkroom_predictions_total"}
    assert {frozenset({("class", "dog")}): 2} == predicted


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4, unique=True))
def test_class_names_of_any_characters_survive_the_text(classes: list[str]) -> None:
    (metrics, _), scrape = processes(2, classes)
    for count, name in enumerate(classes, 1):
        metrics.add(PREDICTIONS, name, n=count)

    assert list(range(1, 1 + len(classes))) == [
        value(scrape, "darkroom_predictions_total", **{"class": name}) for name in classes
    ]


def test_quotes_backslashes_and_line_ends_are_escaped() -> None:
    (metrics, _), scrape = processes(2, ['say "a\\b"\n'])
    metrics.add(PREDICTIONS, 'say "a\\b"\n')

    assert 'darkroom_predictions_total{class="say \\"a\\\\b\\"\\n"} 1.0' in scrape.text().decode().splitlines()


@pytest.mark.parametrize(
    ("family", "values"),
    [(REQUESTS, ("/nope", "200")), (REQUESTS, ("/predict", "299")), (PREDICTIONS, ("bird",)), (IMAGES, ("extra",))],
)
def test_a_label_outside_its_closed_set_is_a_bug_and_counts_nothing(family: Family, values: tuple[str, ...]) -> None:
    (metrics, _), scrape = processes(2)
    before = scrape.text()
    with pytest.raises(KeyError):
        metrics.add(family, *values)

    assert before == scrape.text()


def test_every_status_that_an_error_can_have_is_a_label() -> None:
    assert {int(leaf.status) for leaf in BY_CODE.values()} | {200, 202, DISCONNECTED} == set(STATUSES)
    assert len(set(ROUTES)) == len(ROUTES)


@pytest.mark.parametrize("leaf", BY_CODE.values(), ids=lambda leaf: str(leaf.code))
def test_every_error_is_counted_by_its_reason(leaf: type[ServiceError] | type[ImageError]) -> None:
    (metrics, _), scrape = processes(2)
    before = samples(scrape)
    metrics.reject(leaf("a detail"))
    raised = {
        (name, dict(labels).get("reason")) for (name, labels), n in samples(scrape).items() if n != before[name, labels]
    }

    expected: set[tuple[str, str | None]] = set()
    if issubclass(leaf, Rejected | ImageError):
        expected.add((IMAGES_REJECTED.name, leaf.code))
    if issubclass(leaf, Refused):
        expected.add((REFUSED.name, leaf.code))
    if issubclass(leaf, ClientDisconnect):
        expected.add((DISCONNECTS.name, None))
    assert expected == raised
    assert bool(expected) != (issubclass(leaf, Failed) or leaf.code in ("not_found", "method_not_allowed"))


def test_each_model_served_is_shown_once() -> None:
    metrics = Metrics(CLASSES)
    transport = Transport(1, 1, 1 << 20, metrics.size)
    other = (*MODEL[:3], "cuda:0", "fp32")
    scrape = Scrape([Counted("test", metrics, transport.all_cells())], lambda: [MODEL, list(MODEL), other])

    shown = [labels for name, labels in samples(scrape) if name == "darkroom_model_info"]
    assert sorted(map(sorted, shown)) == sorted(
        sorted(zip(MODEL_INFO.labels, values, strict=True)) for values in (MODEL, other)
    )
    assert 2 == scrape.text().count(b"\ndarkroom_model_info{")


events = st.one_of(
    *(
        st.tuples(
            st.just(family),
            st.sampled_from([(name,) for name in CLASSES] if family is PREDICTIONS else family.values),
            st.floats(0, 100) if family.buckets else st.sampled_from([1, 2, 7]),
        )
        for family in COUNTED
    )
)


def ours(happened: Iterable[tuple[Family, tuple[str, ...], float]]) -> bytes:
    """The exposition of what happened in one process beside another that is idle."""
    (metrics, _), scrape = processes(2)
    for family, values, amount in happened:
        if family.buckets:
            metrics.observe(family, amount, *values)
        else:
            metrics.add(family, *values, n=amount)
    return scrape.text()


def theirs(happened: Iterable[tuple[Family, tuple[str, ...], float]]) -> bytes:
    """The same by prometheus_client's own Counter, Gauge and Histogram."""
    registry = CollectorRegistry()
    made: dict[str, Counter | Gauge | Histogram] = {}
    for family in COUNTED:
        if family.buckets:
            made[family.name] = Histogram(
                family.name, family.help, family.labels, buckets=family.buckets, registry=registry
            )
        else:
            kind = Gauge if family.gauge else Counter
            made[family.name] = kind(family.name, family.help, family.labels, registry=registry)
        for values in family.values if family.labels and not family.seldom else ():
            made[family.name].labels(*values)
    for family, values, amount in happened:
        metric = made[family.name].labels(*values) if values else made[family.name]
        if isinstance(metric, Histogram):
            metric.observe(amount)
        else:
            metric.inc(amount)
    model = Gauge(MODEL_INFO.name, MODEL_INFO.help, MODEL_INFO.labels, registry=registry)
    model.labels(*MODEL).set(1)
    return generate_latest(registry)


def lines(text: bytes) -> list[str]:
    """All lines but those of the `_created` samples, which only prometheus_client's own have."""
    return sorted(line for line in text.decode().splitlines() if "_created" not in line)


@given(st.lists(events, max_size=30))
def test_the_text_is_the_one_that_prometheus_clients_own_metrics_give(
    happened: list[tuple[Family, tuple[str, ...], float]],
) -> None:
    assert lines(theirs(happened)) == lines(ours(happened))


def test_a_scrape_while_others_count_never_goes_backwards_and_ends_with_all() -> None:
    writers, scrape = processes(3)
    rounds = 2000

    def count(metrics: Metrics) -> None:
        for index in range(rounds):
            metrics.add(IMAGES)
            metrics.observe(CONFIDENCE, index / rounds)
            metrics.add(PREDICTIONS, CLASSES[index % 2])

    # Two threads a process: within one, a lock keeps their counts apart.
    threads = [threading.Thread(target=count, args=(metrics,)) for metrics in writers for _ in range(2)]
    for thread in threads:
        thread.start()
    seen: Samples = {}
    while any(thread.is_alive() for thread in threads):
        found = samples(scrape)
        assert all(found[name] >= before for name, before in seen.items())
        buckets = [n for (name, _), n in found.items() if name == "darkroom_prediction_confidence_bucket"]
        assert sorted(buckets) == buckets
        assert buckets[-1] == found["darkroom_prediction_confidence_count", frozenset()]
        seen = found

    total = 6 * rounds
    assert total == value(scrape, "darkroom_images_total") == value(scrape, "darkroom_prediction_confidence_count")
    assert [total / 2] * 2 == [value(scrape, "darkroom_predictions_total", **{"class": name}) for name in CLASSES]


def test_every_leaf_is_counted_or_our_fault_or_a_wrong_address() -> None:
    counted = {*REJECTIONS, *REFUSALS}

    assert {"not_found", "method_not_allowed", *(leaf.code for leaf in leaves(Failed))} == BY_CODE.keys() - counted
