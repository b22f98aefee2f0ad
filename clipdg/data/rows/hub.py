"""A data set on the Hugging Face hub, at a commit that never changes: downloaded once, or streamed.

Only the files of the split that is meant are fetched. A branch or tag is resolved to its commit, which is remembered
and goes into the record, so the same settings mean the same images without a network too (HF_HUB_OFFLINE).

Streamed, parquet lies where it is: its label and domain columns are read when it is opened, images a group of rows at
a time as they are asked for, in order cheaply, at random dearly. The digests that a record needs cost one pass over
all of it, remembered by the commit. What cannot be had in this way is refused: .tar shards are to be downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clipdg.core.download_source import Hub
from clipdg.core.errors import ClipdgError, ConfigError, DataError
from clipdg.data.rows import arrow, shards
from clipdg.data.rows.file_facts import Memory
from clipdg.data.rows.stream import StreamTable
from clipdg.data.rows.table import Table
from clipdg.storage.hub import Patience, at, hub_cache, is_offline
from clipdg.storage.publish import digest

_COMMIT_DIGITS = 40


def open_hub(hub: Hub) -> Table:
    """The table of a repository, its files downloaded unless it is streamed.

    Raises:
        ConfigError: there is no such repository, revision, config or file, or its terms are not accepted.
        DataError: it has several splits and none is named, or no column of images.
        NetworkError: it is not here and cannot be reached.
    """
    hub = replace(hub, revision=commit_of(hub))
    files = files_of(hub)
    endings = {Path(file).suffix for file in files}
    if endings not in ({".parquet"}, {".tar"}):
        raise DataError(f"{hub} consists of {', '.join(sorted(endings))} files; read are parquet and .tar")
    provenance = {name: value for name, value in asdict(hub).items() if value and name != "streaming"}
    if hub.streaming:
        if endings != {".parquet"}:
            raise ConfigError(f"{hub} consists of .tar shards, whose labels lie among the images: download it instead")
        return StreamTable(file_system(), [_address(hub, file) for file in files], str(hub), provenance)
    paths = [_download(hub, file) for file in files]
    if endings == {".parquet"}:
        return arrow.open_parquet(paths, str(hub), provenance)
    return shards.open_shards(paths, str(hub), provenance)


def commit_of(hub: Hub) -> str:
    """The commit that ``hub.revision`` is; without a network, the one that it last was."""
    name = hub.revision or "main"
    if len(name) == _COMMIT_DIGITS and all(c in "0123456789abcdef" for c in name):
        return name
    memory, patience = Memory("hub", hub.repository), Patience(hub.repository)
    if is_offline():
        known = memory.recall(f"commit {name}", [])
        if known is None:
            raise patience.offline(f"the commit of its revision {name}", hub_cache())
        return str(known)
    import huggingface_hub

    def get() -> str:
        found = huggingface_hub.HfApi().dataset_info(hub.repository, revision=name).sha
        assert found is not None
        return found

    commit = patience.ask(at(hub.repository, hub.revision), hub_cache(), get)
    memory.keep({f"commit {name}": ([], commit)})
    return commit


def files_of(hub: Hub) -> list[str]:
    """The paths in the repository of a split's files, in order; ``hub.revision`` is a commit."""
    assert hub.revision is not None
    if hub.data_files and not any("*" in file for file in hub.data_files):
        return list(hub.data_files)
    memory = Memory("hub", hub.repository)
    name = digest([hub.revision, hub.config, hub.split, list(hub.data_files)])
    known = memory.recall(name, [])
    if known is not None:
        return list(known)
    patience = Patience(hub.repository)
    if is_offline():
        raise patience.offline(f"the list of files of {hub}", hub_cache())
    import datasets

    def get() -> Mapping[str, Sequence[str]]:
        with arrow.quiet():
            builder = datasets.load_dataset_builder(
                hub.repository,
                hub.config,
                revision=hub.revision,
                data_files={"files": list(hub.data_files)} if hub.data_files else None,
            )
        found: Mapping[str, Sequence[str]] = builder.config.data_files
        return found

    try:
        splits = patience.ask(f"{hub}", hub_cache(), get)
    except (ValueError, FileNotFoundError) as error:
        if isinstance(error, ClipdgError):
            raise
        raise ConfigError(f"{hub}: {arrow.first_line(error)}") from error
    split = "files" if hub.data_files else arrow.one_split(splits, hub.split, str(hub))
    start = _address(hub, "")
    files = [str(file).removeprefix("hf://").removeprefix(start) for file in splits[split]]
    memory.keep({name: ([], files)})
    return files


def file_system() -> Any:
    import huggingface_hub

    return huggingface_hub.HfFileSystem(endpoint=huggingface_hub.constants.ENDPOINT)


def _address(hub: Hub, file: str) -> str:
    return f"datasets/{hub.repository}@{hub.revision}/{file}"


def _download(hub: Hub, file: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def get() -> Path:
        return Path(huggingface_hub.hf_hub_download(hub.repository, file, repo_type="dataset", revision=hub.revision))

    try:
        return Patience(hub.repository).ask(f"{file} of {at(hub.repository, hub.revision)}", hub_cache(), get)
    except RemoteEntryNotFoundError as error:
        raise ConfigError(f"{at(hub.repository, hub.revision)} has no {file}") from error
