"""Fetch a backbone or a benchmark once, with a network, so that later runs need none.

Downloads go through the libraries' own clients into their own caches (huggingface_hub for timm, open_clip and
transformers; torch.hub for what timm keeps elsewhere), which publish a file whole or not at all; so where this module
puts a file is where the library looks for it. The hub is asked with the patience of ``patience``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from clipdg.core import plugins
from clipdg.core.download_source import Source
from clipdg.core.errors import ConfigError
from clipdg.data.rows import open_table
from clipdg.storage.hub import Patience, Say, at, hub_cache, is_offline
from clipdg.weights.files import seed_of

# What transformers reads of a repository beside its weights: configuration, tokenizer, processor.
SETTINGS = ("*.json", "*.txt", "*.model")
SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")


def fetch_backbone(spec: str, weights: str | None = None, say: Say | None = None) -> list[Path]:
    """The files that ``clipdg.load_backbone(spec, weights)`` reads offline; those that are not here are downloaded.

    Empty if it needs none, as for tiny. ``say`` is told of every new try.

    Raises ConfigError if there is no such backbone, repository or revision, NetworkError if it cannot be reached,
    StorageError if the disk is full or closed.
    """
    family, _, model = spec.partition(":")
    module = plugins.plugin("backbones", family)
    hub = _Hub(spec, say)
    found: set[Path] = set()
    if family == "timm":
        found |= _timm(module, hub, model, weights)
    elif family == "open_clip":
        found |= _open_clip(module, hub, model, weights)
    elif family == "hf":
        found |= _hf(module, hub, model, weights)
    elif family == "tiny":
        module.check_model(model or None)
    else:
        raise ConfigError(f"{spec} is a plug-in of your own; fetch knows what tiny, timm, open_clip and hf need")
    return sorted(found)


def sources(name: str) -> tuple[Source, ...]:
    """What a benchmark consists of; empty if it needs no download."""
    return tuple(getattr(plugins.plugin("benchmarks", name), "SOURCES", ()))


def fetch_source(source: Source, say: Say | None = None) -> None:
    """Download a source's parts on the hub, if it has any, and open them as a run will.

    Raises ConfigError if its terms are not accepted, NetworkError if it cannot be reached.
    """
    for hub in source.hubs:
        if say:
            say(f"{hub}: downloading what is not here")
        table = open_table(None, hub)
        if say:
            say(f"{hub}: {len(table):,} rows")


def _timm(module: Any, hub: _Hub, model: str, weights: str | None) -> set[Path]:
    model, _, revision = model.partition("@")
    module.check_tag(model)
    if weights is not None:  # a file or a seed; the architecture and the preprocessing are in the package
        return set()
    repository, names = module.sources(model)
    return {hub.url(names[0])} if repository is None else {hub.first(repository, names, revision or None)}


def _open_clip(module: Any, hub: _Hub, model: str, weights: str | None) -> set[Path]:
    found = set()
    schema, _, place = model.partition(":")
    if schema == "hf-hub":
        repository, _, revision = place.partition("@")
        found.add(hub.first(repository, (module.CONFIG,), revision or None))  # which ``resolve`` then finds
    source = module.resolve(model, weights)
    if source.repository is not None and source.file is None and seed_of(weights) is None:
        found.add(hub.first(source.repository, source.files, source.revision))
    text = source.config["text_cfg"]
    parts = {text.get("hf_model_name")} - {None}  # of which a folder need not have the configuration beside it
    parts = {n for n in parts if source.folder is None or not (source.folder / n / "config.json").is_file()}
    if source.folder is None:
        parts |= {text.get("hf_tokenizer_name")} - {None}
    for name in parts:
        if not (Path(name).expanduser() / "config.json").is_file():
            found |= hub.matching(name, SETTINGS)
    return found


def _hf(module: Any, hub: _Hub, model: str, weights: str | None) -> set[Path]:
    named = module.repository(model, with_weights=weights is None)
    if named is None:
        return set()
    repository, revision = named
    found = hub.matching(repository, SETTINGS, revision)
    if weights is not None:
        return found
    held = hub.matching(repository, SAFETENSORS, revision)
    held = held or hub.matching(repository, PICKLES, revision)
    # Without a network, a folder of which some files were fetched counts as whole; asked by name, a file does not.
    return found | (held or {hub.first(repository, (SAFETENSORS[0], PICKLES[0]), revision)})


class _Hub:
    """The libraries' own clients, with patience."""

    def __init__(self, spec: str, say: Say | None) -> None:
        self.spec, self._patience = spec, Patience(spec, say)

    def first(self, repository: str, names: tuple[str, ...], revision: str | None = None) -> Path:
        """The first of ``names`` that the repository has."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        for name in names:
            try:
                return self._patience.ask(
                    f"{name} of {at(repository, revision)}",
                    hub_cache(),
                    partial(self._file, repository, name, revision),
                )
            except RemoteEntryNotFoundError:
                continue
        raise ConfigError(f"{self.spec}: {at(repository, revision)} has no {' and no '.join(names)}")

    def _file(self, repository: str, name: str, revision: str | None) -> Path:
        import huggingface_hub

        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))

    def matching(self, repository: str, patterns: tuple[str, ...], revision: str | None = None) -> set[Path]:
        """The files at the top of a repository that match; not those of other formats, which lie in folders."""
        import huggingface_hub

        def get() -> Path:
            return Path(
                huggingface_hub.snapshot_download(
                    repository, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
                )
            )

        folder = self._patience.ask(f"{' and '.join(patterns)} of {at(repository, revision)}", hub_cache(), get)
        return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}

    def url(self, address: str) -> Path:
        """A file that is in no repository; its name ends in the first digits of its SHA-256, which is checked."""
        import torch
        from timm.models import _hub

        path = Path(_hub.get_cache_dir(), address.rpartition("/")[2])
        digits = torch.hub.HASH_REGEX.search(path.name)
        if digits is None or len(digits.group(1)) < 8:
            raise ConfigError(f"{self.spec}: {path.name} does not say its SHA-256, so what arrives cannot be checked")
        if path.is_file():
            return path
        if is_offline():
            raise self._patience.offline(path.name, path.parent)

        def get() -> Path:
            torch.hub.download_url_to_file(address, str(path), digits.group(1), progress=False)
            return path

        return self._patience.ask(path.name, path.parent, get)
