"""What the pipeline takes for a hang, and what not."""

from dataclasses import replace
from pathlib import Path

import torch

from models import artifact, engine
from models.decode import LARGE_AT_ONCE
from service.batching import Pipeline
from service.metrics import Metrics
from service.settings import Settings
from service.transport import Transport

SLOWEST_S = 1.5  # what the costliest accepted picture takes


def test_no_thread_hangs_that_waits_for_its_turn_with_a_large_picture(model: Path) -> None:
    prepared = engine.prepare(artifact.load(model), torch.device("cpu"), max_batch_size=4)
    settings = Settings(model=model, _cli_parse_args=[])  # type: ignore[call-arg]
    for cores in (2, 6, 16, 64):
        on_many = replace(prepared, sharing=engine.Sharing(cores))
        metrics = Metrics(prepared.artifact.manifest.classes)
        pipeline = Pipeline(on_many, Transport(1, 1, 1 << 20), settings, metrics)

        assert pipeline.patience > len(pipeline.threads) / LARGE_AT_ONCE * SLOWEST_S
