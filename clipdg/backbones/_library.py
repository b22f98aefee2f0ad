"""Helpers of the families that load other libraries' weights.

They take a file from the hub's cache where it is there, and turn the libraries' errors into one sentence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from clipdg.core.errors import ClipdgError, ConfigError, DataError, NetworkError
from clipdg.weights.files import first_line

# What transformers reads of a repository beside its weights: configuration, tokenizer, processor.
SETTINGS = ("*.json", "*.txt", "*.model")


def hub_file(
    repository: str, names: Sequence[str], revision: str | None, spec: str, weights: str | None = None
) -> Path:
    """Find the first of ``names`` that a repository has: in the hub's cache, or else on the hub.

    Raises NetworkError if it cannot be had, saying what ``spec`` needs, where it was looked for and how to fetch it.
    Raises ConfigError if the repository has none of them.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    needed = f"{spec}{f' with weights {weights}' if weights else ''} needs {' or '.join(names)} of repository "
    needed += repository + (f" at revision {revision}" if revision else "")
    try:
        for name in names:
            cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
            if isinstance(cached, str):
                return Path(cached)
        why = "HF_HUB_OFFLINE is set"
        if not huggingface_hub.is_offline_mode():
            why = "the hub cannot be reached"
            for name in names:
                try:
                    return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
                except LocalEntryNotFoundError:
                    break
                except EntryNotFoundError:
                    continue
            else:
                raise ConfigError(f"{needed}, and the hub has no such file there; give a checkpoint file instead")
    except HFValidationError as error:
        raise ConfigError(f"{needed}, which is no repository's name: {first_line(error)}") from error
    except OSError as error:  # the hub's answers are OSErrors too: no such repository, revision or right to it
        why = first_line(error)
    raise NetworkError(
        f"{needed}, which is not in the hub's cache {huggingface_hub.constants.HF_HUB_CACHE}, and {why}; "
        f"{how_to_fetch(spec, weights)}"
    )


def how_to_fetch(spec: str, weights: str | None = None) -> str:
    """The end of a message that says how to fetch a backbone."""
    given = f"{spec} --weights {weights}" if weights else spec
    return f"`clipdg fetch backbone {given}` fetches it where there is a network"


def commit_of(path: Path) -> str | None:
    """The commit of a file in the hub's cache, …/snapshots/COMMIT/…; None for a file elsewhere."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


@contextmanager
def reading(spec: str) -> Iterator[None]:
    """Turn what a library raises while it reads the configuration of ``spec`` into ConfigError.

    Libraries raise almost anything for a configuration that makes no sense: KeyError, ZeroDivisionError, errors of
    their own. All of it is a mistake in that configuration.
    """
    try:
        yield
    except ClipdgError:
        raise
    except Exception as error:
        raise ConfigError(f"{spec} cannot be loaded: {first_line(error)}") from error


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of all that decides which tokens a tokenizer makes; ``tokenizer`` is either kind of transformers'."""
    if hasattr(tokenizer, "backend_tokenizer"):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        state = {k: v for k, v in content.items() if k not in ("truncation", "padding")}  # what the last call set
    else:
        model = hashlib.sha256(tokenizer.sp_model.serialized_model_proto()).hexdigest()
        state = {"class": type(tokenizer).__name__, "model": model}
        state |= {"lower": getattr(tokenizer, "do_lower_case", None), "special": tokenizer.all_special_tokens}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def check_length(text: str, length: int, most: int, name: str) -> None:
    """Raises DataError if ``text``, of ``length`` tokens, is too long for the backbone ``name``."""
    if length > most:
        raise DataError(f"'{text}' is {length} tokens for {name}, which takes {most} with start and end; shorten it")


def unrepresentable(text: str, name: str) -> DataError:
    """The error for a text with a part that the vocabulary of the backbone ``name`` lacks."""
    return DataError(f"'{text}' has a part that the tokenizer of {name} cannot represent")


def scaled_cosines(image: Tensor, text: Tensor, scale: Tensor | float, bias: Any = None) -> tuple[Tensor, Tensor]:
    """Compare (N, D) and (C, D) features -> logits_per_image (N, C), logits_per_text (C, N).

    ``bias`` is added to all logits: SigLIP has one, the other families have None.
    """
    logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    if bias is not None:
        logits = logits + bias
    return logits, logits.T
