"""Fetch a backbone once, with a network, so that later runs need none.

Downloads go through the libraries' own clients into their own caches (huggingface_hub for timm, open_clip and
transformers; torch.hub for what timm keeps elsewhere), which publish a file whole or not at all; so where this module
puts a file is where the library looks for it. A busy or broken network is tried five times; a server that says when to
come back is obeyed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from clipdg import catalog
from clipdg.errors import ConfigError, NetworkError, StorageError
from clipdg.weights import seed_of

TRIES = 5
LONGEST_WAIT = 60.0  # seconds
# What transformers reads of a repository beside its weights: configuration, tokenizer, processor.
SETTINGS = ("*.json", "*.txt", "*.model")
SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses of a server that may answer later

Say = Callable[[str], None]
Found = TypeVar("Found")


def fetch_backbone(spec: str, weights: str | None = None, say: Say | None = None) -> list[Path]:
    """The files that ``clipdg.load_backbone(spec, weights)`` reads offline; those that are not here are downloaded.

    Empty if it needs none, as for tiny. ``say`` is told of every new try.

    Raises ConfigError if there is no such backbone, repository or revision, NetworkError if it cannot be reached,
    StorageError if the disk is full or closed.
    """
    family, _, model = spec.partition(":")
    module = catalog.plugin("backbones", family)
    hub = _Hub(spec, say)
    found: set[Path] = set()
    if family == "timm":
        found |= _timm(module, hub, model, weights)
    elif family == "open_clip":
        found |= _open_clip(module, hub, model, weights)
    elif family == "hf":
        found |= _hf(hub, model, weights)
    elif family != "tiny":
        raise ConfigError(f"{spec} is a plug-in of your own; fetch knows what tiny, timm, open_clip and hf need")
    return sorted(found)


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
    for name in {text.get("hf_tokenizer_name"), text.get("hf_model_name")} - {None}:
        if source.folder is None:
            found |= hub.matching(name, SETTINGS)
    return found


def _hf(hub: _Hub, model: str, weights: str | None) -> set[Path]:
    if Path(model).expanduser().is_dir():
        return set()
    repository, _, revision = model.partition("@")
    found = hub.matching(repository, SETTINGS, revision or None)
    if weights is not None:
        return found
    held = hub.matching(repository, SAFETENSORS, revision or None)
    held = held or hub.matching(repository, PICKLES, revision or None)
    # Without a network, a folder of which some files were fetched counts as whole; asked by name, a file does not.
    return found | (held or {hub.first(repository, (SAFETENSORS[0], PICKLES[0]), revision or None)})


class _Hub:
    """The libraries' own clients, with patience."""

    def __init__(self, spec: str, say: Say | None) -> None:
        self.spec, self.say = spec, say or (lambda _: None)

    def first(self, repository: str, names: tuple[str, ...], revision: str | None = None) -> Path:
        """The first of ``names`` that the repository has."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        for name in names:
            try:
                return self._patiently(
                    f"{name} of {_at(repository, revision)}",
                    _hub_cache(),
                    partial(self._file, repository, name, revision),
                )
            except RemoteEntryNotFoundError:
                continue
        raise ConfigError(f"{self.spec}: {_at(repository, revision)} has no {' and no '.join(names)}")

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

        folder = self._patiently(f"{' and '.join(patterns)} of {_at(repository, revision)}", _hub_cache(), get)
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
        if _offline():
            raise self._offline(path.name, path.parent)

        def get() -> Path:
            torch.hub.download_url_to_file(address, str(path), digits.group(1), progress=False)
            return path

        return self._patiently(path.name, path.parent, get)

    def _patiently(self, what: str, where: Path, call: Callable[[], Found]) -> Found:
        from huggingface_hub import errors

        wait = 1.0
        for attempt in range(1, TRIES + 1):
            try:
                return call()
            except errors.RemoteEntryNotFoundError:
                raise
            except errors.GatedRepoError as error:
                raise ConfigError(
                    f"{self.spec} needs {what}, which is only for those who accepted its terms; "
                    "accept them on its page and set HF_TOKEN"
                ) from error
            except errors.RevisionNotFoundError as error:
                raise ConfigError(f"{self.spec} needs {what}, and there is no such revision") from error
            except errors.RepositoryNotFoundError as error:
                raise ConfigError(
                    f"{self.spec} needs {what}, and there is no such repository; if it is private, set HF_TOKEN"
                ) from error
            except Exception as error:
                if _offline():
                    raise self._offline(what, where) from error
                reason = _passing(error)
                if reason is None:
                    raise
                asked = _retry_after(error)
                if attempt == TRIES or (asked or 0.0) > LONGEST_WAIT:
                    later = "" if asked is None else f"; the server asks to wait {asked:.0f} s"
                    tries = "1 try" if attempt == 1 else f"{attempt} tries"
                    raise NetworkError(
                        f"{self.spec} needs {what}, which is not in {where} and could not be downloaded in {tries}: "
                        f"{reason}{later}; run this again later"
                    ) from error
                pause = wait if asked is None else asked
                self.say(f"{what}: {reason}; try {attempt + 1} of {TRIES} in {pause:.0f} s")
                time.sleep(pause)
                wait = min(2 * wait, LONGEST_WAIT)
        raise AssertionError("the last try returns or raises")

    def _offline(self, what: str, where: Path) -> NetworkError:
        return NetworkError(
            f"{self.spec} needs {what}, which is not in {where}, and HF_HUB_OFFLINE is set; unset it, or fetch where "
            "there is a network and copy that folder"
        )


def _passing(error: Exception) -> str | None:
    """What is wrong with the network, if it may pass; None if the error is of another kind.

    Raises StorageError for a disk that is full or closed, NetworkError for an answer that will not change.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise StorageError(f"cannot write {each.filename or 'the cache'}: {each.strerror}") from error
    statuses = [status for each in _chain(error) if (status := _status(each)) is not None]
    if statuses and statuses[0] not in BUSY:
        raise NetworkError(
            f"the download was refused with status {statuses[0]}; check HF_TOKEN and the proxy"
        ) from error
    if statuses:
        return f"status {statuses[0]}"
    if isinstance(error, LocalEntryNotFoundError):
        return "no connection"
    network = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore")
    cut = isinstance(error, RuntimeError) and "hash" in str(error)
    return "it arrived cut or changed" if cut else type(error).__name__ if network else None


def _status(error: BaseException) -> int | None:
    """The HTTP status of huggingface_hub's or urllib's error."""
    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "code", None))
    return status if isinstance(status, int) else None


def _retry_after(error: BaseException) -> float | None:
    """Seconds that the server asks to wait, given as a number or a date."""
    for each in _chain(error):
        headers = getattr(getattr(each, "response", each), "headers", None)
        value = headers.get("Retry-After") if headers is not None else None
        if value is None:
            continue
        if value.strip().isdigit():
            return float(value)
        try:
            return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
        except (TypeError, ValueError):
            return None
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _at(repository: str, revision: str | None) -> str:
    return f"{repository}@{revision}" if revision else repository


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
