"""Download files with patience, and say in one sentence why one cannot be had.

Downloads go through the libraries' own clients into their own caches, so a file lies where the library looks for it:
huggingface_hub for repositories, torch.hub for what is in none. Both publish a file whole or not at all. A busy or
broken network is tried five times; a server that says when to come back is obeyed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from clipdg.core.errors import ConfigError, NetworkError, StorageError

TRIES = 5
LONGEST_WAIT = 60.0  # seconds
BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses of a server that may answer later

Say = Callable[[str], None]
Found = TypeVar("Found")


class Patience:
    """Tries a download several times, and says in one sentence why it failed.

    Messages begin with ``needs``, the backbone or data set that it is for. ``say`` is told of every new try.
    """

    def __init__(self, needs: str, say: Say | None = None) -> None:
        self.needs, self.say = needs, say or (lambda _: None)

    def ask(self, what: str, where: Path, call: Callable[[], Found]) -> Found:
        """Return what ``call`` returns. It downloads ``what`` to ``where``, as messages call them.

        A file that a repository does not have passes through as RemoteEntryNotFoundError. Raises ConfigError if there
        is no such repository or revision, NetworkError if it cannot be reached, StorageError for a full or closed disk.
        """
        from huggingface_hub import errors

        wait = 1.0
        for attempt in range(1, TRIES + 1):
            try:
                return call()
            except errors.RemoteEntryNotFoundError:
                raise
            except errors.GatedRepoError as error:
                raise ConfigError(
                    f"{self.needs} needs {what}, which is only for those who accepted its terms; "
                    "accept them on its page and set HF_TOKEN"
                ) from error
            except errors.RevisionNotFoundError as error:
                raise ConfigError(f"{self.needs} needs {what}, and there is no such revision") from error
            except errors.RepositoryNotFoundError as error:
                raise ConfigError(
                    f"{self.needs} needs {what}, and there is no such repository; if it is private, set HF_TOKEN"
                ) from error
            except Exception as error:
                if is_offline():
                    raise self.offline(what, where) from error
                reason = _passing(error)
                if reason is None:
                    raise
                asked = _retry_after(error)
                if attempt == TRIES or (asked or 0.0) > LONGEST_WAIT:
                    later = "" if asked is None else f"; the server asks to wait {asked:.0f} s"
                    tries = "1 try" if attempt == 1 else f"{attempt} tries"
                    raise NetworkError(
                        f"{self.needs} needs {what}, which is not in {where} and could not be downloaded in {tries}: "
                        f"{reason}{later}; run this again later"
                    ) from error
                pause = wait if asked is None else asked
                self.say(f"{what}: {reason}; try {attempt + 1} of {TRIES} in {pause:.0f} s")
                time.sleep(pause)
                wait = min(2 * wait, LONGEST_WAIT)
        raise AssertionError("the last try returns or raises")

    def offline(self, what: str, where: Path) -> NetworkError:
        """The error for a file that is not here and that HF_HUB_OFFLINE forbids to ask for."""
        return NetworkError(
            f"{self.needs} needs {what}, which is not in {where}, and HF_HUB_OFFLINE is set; unset it, or fetch where "
            "there is a network and copy that folder"
        )


class HubClient:
    """Brings the files of a backbone here, with patience; a family's ``downloads`` gets one.

    A file that is in its cache already is not asked for again. ``needs`` is the backbone ("timm:resnet50.tv_in1k"),
    with which messages begin; ``say`` is told of every new try.

    Each method raises ConfigError if there is no such repository or revision, NetworkError if it cannot be reached,
    StorageError if the disk is full or closed.
    """

    def __init__(self, needs: str, say: Say | None = None) -> None:
        self.needs, self._patience = needs, Patience(needs, say)

    def first(self, repository: str, names: Sequence[str], revision: str | None = None) -> Path:
        """The first of ``names`` that the repository has. Raises ConfigError if it has none of them."""
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
        raise ConfigError(f"{self.needs}: {at(repository, revision)} has no {' and no '.join(names)}")

    def _file(self, repository: str, name: str, revision: str | None) -> Path:
        import huggingface_hub

        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))

    def matching(self, repository: str, patterns: Sequence[str], revision: str | None = None) -> set[Path]:
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

    def url(self, address: str, folder: Path) -> Path:
        """A file that is in no repository, in ``folder``.

        Its name must end in the first digits of its SHA-256, as torch.hub's do, and what arrives is checked against
        them. Raises ConfigError if it does not.
        """
        import torch

        path = folder / address.rpartition("/")[2]
        digits = torch.hub.HASH_REGEX.search(path.name)
        if digits is None or len(digits.group(1)) < 8:
            raise ConfigError(f"{self.needs}: {path.name} does not say its SHA-256, so what arrives cannot be checked")
        if path.is_file():
            return path
        if is_offline():
            raise self._patience.offline(path.name, folder)

        def get() -> Path:
            torch.hub.download_url_to_file(address, str(path), digits.group(1), progress=False)
            return path

        return self._patience.ask(path.name, folder, get)


def _passing(error: Exception) -> str | None:
    """Say what is wrong with the network, if it may pass; None if the error is of another kind.

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
    """An error and those that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def at(repository: str, revision: str | None) -> str:
    return f"{repository}@{revision}" if revision else repository


def hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
