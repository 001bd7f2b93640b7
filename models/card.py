"""The model card: the manifest told to people (Mitchell et al. 2019, Model Cards for Model Reporting)."""

from models.manifest import Accuracy, Manifest, Metrics


def rows(manifest: Manifest) -> list[tuple[str, str]]:
    """What is told, by name."""
    metrics = manifest.metrics or Metrics()
    return [
        ("Version", manifest.version),
        ("Architecture", f"{manifest.architecture.name} {manifest.architecture.arguments}"),
        ("Input", f"RGB, {manifest.input_size} x {manifest.input_size} px, centre crop {manifest.crop:g}"),
        ("Validation accuracy", told(metrics.validation)),
        ("Test accuracy", told(metrics.test)),
        ("Unknown below", unknown(manifest)),
        ("Drift is measured against", drift(manifest)),
        ("Temperature", f"{manifest.temperature:.3f}"),
        ("Data fingerprint", manifest.data_fingerprint or "unknown"),
        (
            "Trained with",
            str(manifest.recipe) if manifest.recipe else "unknown recipe (exported from existing weights)",
        ),
        ("torch", ", ".join(f"{name} {version}" for name, version in manifest.torch.items())),
        ("Created", manifest.created.isoformat(timespec="seconds")),
        ("Digest", manifest.digest),
    ]


def card(manifest: Manifest) -> str:
    """The card as Markdown."""
    table = "\n".join(f"| {name} | {value} |" for name, value in rows(manifest))
    classes = "\n".join(f"{index}. {name}" for index, name in enumerate(manifest.classes))
    return f"""# {manifest.name}

An image classifier for {len(manifest.classes)} classes. It answers for every picture, also for pictures of none of
them: probabilities are calibrated for pictures like those it was validated on, and mean little for others. A first
answer of a probability below the threshold, if one is told here, should be taken as "unknown".

| | |
|---|---|
{table}

## Classes

{classes}
"""


def told(accuracy: Accuracy | None) -> str:
    """An accuracy with its conditions, or that it is unknown."""
    if accuracy is None:
        return "not measured"
    low, high = accuracy.interval
    return f"{accuracy.value:.2%} of {accuracy.n:,} images (95 % interval {low:.2%} to {high:.2%})"


def drift(manifest: Manifest) -> str:
    """What is known of the images that it was validated on."""
    known = manifest.validation_statistics
    return f"{sum(known.classes):,} validation images" if known else "nothing"


def unknown(manifest: Manifest) -> str:
    """The threshold and what it was measured to do, or that there is none."""
    if manifest.unknown_threshold is None:
        return "no threshold was chosen"
    measured = manifest.metrics and manifest.metrics.unknown
    refused = (
        [f"{part.refused:.1%} of {part.n:,} {name}" for name, part in measured.strangers.items()] if measured else []
    )
    return f"{manifest.unknown_threshold:.3f}" + (f"; refuses {', '.join(refused)}" if refused else "")
