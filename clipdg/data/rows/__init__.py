"""Where labelled images come from: a ``Table`` for each kind of place, and ``TableRows`` that make a domain of one.

    folder.py   image files below a folder
    arrow.py    what ``datasets`` wrote: parquet files, a folder of save_to_disk
    shards.py   webdataset .tar shards, read in place
    hub.py      a repository of the Hugging Face hub at a pinned commit, downloaded or streamed (stream.py)

Every table says what its columns hold without decoding an image, and gives the stored bytes of one image by its index;
bytes become pixels in ``images.decode`` and nowhere else, so they are the same pixels whichever way they came.
"""

from __future__ import annotations

import os
from pathlib import Path

from clipdg.core.download_source import Hub
from clipdg.core.errors import ConfigError, DataError
from clipdg.data.decode import ENDINGS
from clipdg.data.rows import arrow, folder, shards
from clipdg.data.rows.folder import FolderTable
from clipdg.data.rows.hub import open_hub
from clipdg.data.rows.table import ArrayRows, Table, TableRows, fingerprint, select

__all__ = ["ArrayRows", "FolderTable", "Table", "TableRows", "fingerprint", "open_table", "select"]


def open_table(root: str | Path | None, hub: Hub | None = None) -> Table:
    """The table in ``root``: a folder of image files, a folder of save_to_disk, parquet files, webdataset shards.

    Without ``root`` it is the repository ``hub``. With both, ``root`` is a copy of it, and of ``hub`` only its config,
    split and files are used; of what save_to_disk wrote, files of no named split are those of all splits.

    Raises:
        ConfigError: nothing is there, or neither is given.
        DataError: what is there cannot be read, or holds several splits of which none is named.
        NetworkError: the repository is not here and cannot be reached.
    """
    if root is None:
        if hub is None:
            raise ConfigError("no place to read images from: give benchmark.root=DIR")
        return open_hub(hub)
    place = Path(root).expanduser()
    if not place.exists():
        raise ConfigError(f"no file or folder {place}; benchmark.root is where the images are")
    kind = _kind(place)
    split = hub.split if hub else None
    if kind == "saved":
        return arrow.open_saved(place, split, joined=hub is not None and bool(hub.data_files))
    if kind == "folder":
        return folder.open_folder(place)
    files = _files_of(place, hub or Hub(place.name), kind)
    return arrow.open_parquet(files, str(place)) if kind == ".parquet" else shards.open_shards(files, str(place))


def _kind(place: Path) -> str:
    """folder, saved, .parquet or .tar: what is in ``place``, by the first file in it or right below it that tells."""
    if place.is_file():
        if place.suffix in (".parquet", ".tar"):
            return place.suffix
        hint = f"; unpack it: gunzip -k {place.name}" if place.name.endswith((".tar.gz", ".tgz")) else ""
        raise ConfigError(f"{place} is neither a folder nor a .parquet or .tar file{hint}")
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return "saved"
    try:
        below = [place, *sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))]
        for one in below:
            with os.scandir(one) as entries:
                for entry in entries:
                    ending = os.path.splitext(entry.name)[1].lower()
                    if entry.name.startswith(".") or entry.is_dir():
                        continue
                    if ending in (".parquet", ".tar"):
                        return ending
                    if ending in ENDINGS:
                        return "folder"
    except OSError as error:
        raise DataError(f"{error.filename or place} cannot be read: {error.strerror or error}") from error
    return "folder"


def _files_of(place: Path, hub: Hub, kind: str) -> list[Path]:
    """The files of one split below ``place``, told apart as the hub does: by the card in README.md, else by name.

    Only those that end in ``kind``: beside a single shard the library takes its nshards.txt for the data.
    """
    import datasets
    from datasets.data_files import DataFilesDict, get_data_patterns

    if place.is_file():
        return [place]
    if hub.data_files:
        files = [file for pattern in hub.data_files for file in sorted(place.glob(pattern))]
        if not files:
            raise DataError(f"{place} has no {' and no '.join(hub.data_files)}")
        return files
    try:
        splits = datasets.load_dataset_builder(str(place), hub.config).config.data_files
        if not all(str(file).endswith(kind) for files in splits.values() for file in files):
            splits = DataFilesDict.from_patterns(get_data_patterns(str(place)), base_path=str(place))
            splits = splits.filter(extensions=[kind])
    except (ValueError, OSError) as error:
        raise DataError(f"{place} cannot be opened as a data set: {arrow.first_line(error)}") from error
    return [Path(file) for file in splits[arrow.one_split(splits, hub.split, str(place))]]
