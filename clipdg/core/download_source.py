"""Where a benchmark's images come from: what ``clipdg fetch benchmark`` downloads, and what a person has to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hub:
    """A repository of the Hugging Face hub, or one split of it.

    ``revision``: a commit, branch or tag; None is the newest. ``split``: None is the only one there is.

    ``data_files``: paths in the repository, ``*`` allowed, in the place of what its card says of config and split.
    """

    repository: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    data_files: tuple[str, ...] = ()
    streaming: bool = False

    def __str__(self) -> str:
        commit = f" at {self.revision[:7]}" if self.revision else ""
        return f"{self.repository}{commit}" + (f", split {self.split}" if self.split else "")


@dataclass(frozen=True)
class Source:
    """One set of images.

    ``hubs``: its parts on the hub; none where nothing there can be relied on. ``terms``: what one agrees to, shown
    before a download. ``steps``: sentences that say where it is otherwise and what the folder must look like.
    ``gated``: the hub gives it only to those who accepted its terms there.
    """

    name: str
    hubs: tuple[Hub, ...] = ()
    terms: str = ""
    steps: str = ""
    gated: bool = False
