"""What the families share that load other libraries' weights: the hub's cache first, and errors in one sentence."""

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
    """The first of ``names`` that a repository has: from the hub's cache, else from the hub.

    Raises NetworkError saying what ``spec`` looked for, where, and how it is fetched; ConfigError if there is none.
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
    except OSError as error:  # also those of the hub's answers: no such repository, revision or right to it
        why = first_line(error)
    raise NetworkError(
        f"{needed}, which is not in the hub's cache {huggingface_hub.constants.HF_HUB_CACHE}, and {why}; "
        f"{how_to_fetch(spec, weights)}"
    )


def how_to_fetch(spec: str, weights: str | None = None) -> str:
    given = f"{spec} --weights {weights}" if weights else spec
    return f"`clipdg fetch backbone {given}` fetches it where there is a network"


def commit_of(path: Path) -> str | None:
    """Of a file in the hub's cache, …/snapshots/COMMIT/…"""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


@contextmanager
def reading(spec: str) -> Iterator[None]:
    """While a library reads the configuration that a folder or a repository brings.

    Libraries raise almost anything for one that makes no sense (KeyError, ZeroDivisionError, their own kinds); all of
    it is a mistake in that configuration.
    """
    try:
        yield
    except ClipdgError:
        raise
    except Exception as error:
        raise ConfigError(f"{spec} cannot be loaded: {first_line(error)}") from error


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what makes tokens of a text: a tokenizer of transformers, of either of its two kinds."""
    if hasattr(tokenizer, "backend_tokenizer"):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        state = {k: v for k, v in content.items() if k not in ("truncation", "padding")}  # of the last call
    else:
        model = hashlib.sha256(tokenizer.sp_model.serialized_model_proto()).hexdigest()
        state = {"class": type(tokenizer).__name__, "model": model}
        state |= {"lower": getattr(tokenizer, "do_lower_case", None), "special": tokenizer.all_special_tokens}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def check_length(text: str, length: int, most: int, name: str) -> None:
    if length > most:
        raise DataError(f"'{text}' is {length} tokens for {name}, which takes {most} with start and end; shorten it")


def unrepresentable(text: str, name: str) -> DataError:
    return DataError(f"'{text}' has a part that the tokenizer of {name} cannot represent")


def scaled_cosines(image: Tensor, text: Tensor, scale: Tensor | float, bias: Any = None) -> tuple[Tensor, Tensor]:
    """(N, D) and (C, D) features -> logits_per_image (N, C), logits_per_text (C, N); ``bias``: SigLIP's, or None."""
    logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    if bias is not None:
        logits = logits + bias
    return logits, logits.T
