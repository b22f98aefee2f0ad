"""clipdg pretrain."""

from __future__ import annotations

from pathlib import Path

from clipdg.cli.console import Out, Overrides, Progress, app, check_folder, say, split


@app.command()
def pretrain(arguments: Overrides = None, out: Out = Path("results/pretrain")) -> None:
    """Train a CLIP on image-caption pairs.

    Pairs are data=miniatures (drawn), or data=folder|datasets|webdataset at root=PLACE.
    """
    from clipdg.runs import config

    file, overrides = split(arguments)
    given = config.settings_of(file, overrides)
    check_folder(out)
    from clipdg.training.pretrain import PretrainConfig
    from clipdg.training.pretrain import pretrain as pretrain_

    settings = PretrainConfig(**config.check(PretrainConfig, given).values)
    with Progress() as progress:
        path = pretrain_(settings, out, progress)
    say(f"Weights in {path}; use them with backbone.weights={path}")
