"""Fetching: what an offline run needs, whole or not at all, and patience with the network.

Where a download itself is tested, the libraries' real clients talk to a server on this machine.
"""

from __future__ import annotations

import errno
import hashlib
import http.server
import importlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import open_clip as library
import pytest
import timm
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save

from clipdg.backbones import timm as plugin
from clipdg.core.errors import ConfigError, NetworkError, StorageError
from clipdg.runs.fetch import fetch_backbone
from clipdg.storage.hub import HubClient

NAME = "test_resnet.r160_in1k"
REPOSITORY = f"timm/{NAME}"
# huggingface_hub's own HTTP library, httpx or httpx2
httpx = importlib.import_module(errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no wait that is not asked for."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr("clipdg.storage.hub.time", SimpleNamespace(sleep=waited.append))
    return waited


def files_under(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "snapshots" in p.parts}


class Hub:
    """The part of the hub's protocol that a download of single files needs; ``cuts`` answers break off halfway."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.cuts, self.asked = files, 0, []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                hub.asked.append((self.command, self.path))
                content = hub.files.get(self.path)
                if content is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
                self.send_response(206 if start else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", '"0000"')
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                if body and hub.cuts:
                    hub.cuts -= 1
                    self.wfile.write(content[start : (start + len(content)) // 2])
                    self.wfile.flush()
                    self.connection.close()
                elif body:
                    self.wfile.write(content[start:])

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, bytes]], Hub]]:
    started = []

    def start(files: dict[str, bytes]) -> Hub:
        hub = Hub(files)
        thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
        thread.start()
        started.append((hub, thread))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        return hub

    yield start
    for hub, thread in started:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


def weights_of(name: str = NAME) -> bytes:
    torch.manual_seed(7)
    return save(timm.create_model(name).state_dict(), metadata={"format": "pt"})


def test_what_was_fetched_is_loaded_without_a_network(
    serve: Callable[[dict[str, bytes]], Hub], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = serve({f"/{REPOSITORY}/resolve/main/model.safetensors": weights_of()})
    [path] = fetch_backbone(f"timm:{NAME}")
    assert path == cache / f"models--timm--{NAME}" / "snapshots" / COMMIT / "model.safetensors"
    assert path.read_bytes() == weights_of()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests = len(hub.asked)
    assert plugin.load(NAME).weights.provenance["revision"] == COMMIT
    assert fetch_backbone(f"timm:{NAME}") == [path]
    assert len(hub.asked) == requests


def test_a_repository_without_safetensors_is_asked_for_the_other_form(
    serve: Callable[[dict[str, bytes]], Hub],
) -> None:
    serve({f"/{REPOSITORY}/resolve/abc/pytorch_model.bin": b"weights"})
    [path] = fetch_backbone(f"timm:{NAME}@abc")
    assert (path.name, path.read_bytes()) == ("pytorch_model.bin", b"weights")
    serve({})
    with pytest.raises(ConfigError, match=f"timm/{NAME}@def has no model.safetensors and no pytorch_model.bin"):
        fetch_backbone(f"timm:{NAME}@def")


def test_a_cut_download_leaves_no_file_and_is_tried_again(
    serve: Callable[[dict[str, bytes]], Hub], cache: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 4096
    hub = serve({f"/{REPOSITORY}/resolve/main/model.safetensors": content})
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client's own waits between its own tries
    seen = []
    hub.cuts = 10**6
    with pytest.raises(NetworkError, match=r"could not be downloaded in 5 tries"):
        fetch_backbone(f"timm:{NAME}", say=lambda _: seen.append(files_under(cache)))
    assert seen == [{}] * 4
    assert files_under(cache) == {}
    assert waits == [1, 2, 4, 8]
    hub.cuts = 1
    [path] = fetch_backbone(f"timm:{NAME}")
    assert path.read_bytes() == content


def test_what_is_in_no_repository_is_checked_before_it_gets_its_name(
    serve: Callable[[dict[str, bytes]], Hub], tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"weights" * 1000
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    hub = serve({f"/{name}": content})
    monkeypatch.setattr(plugin, "sources", lambda _: (None, (f"{hub.address}/{name}",)))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    hub.cuts = 1
    assert fetch_backbone("timm:legacy_seresnet18.in1k") == [folder / name]
    assert waits == [1]  # the cut one was told by its digest
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {name: content}


def answering(status: int, **headers: str) -> errors.HfHubHTTPError:
    request = httpx.Request("GET", "http://127.0.0.1/file")
    return errors.HfHubHTTPError("no", response=httpx.Response(status, headers=headers, request=request))


def failing(monkeypatch: pytest.MonkeyPatch, *problems: BaseException) -> list[str]:
    """The client fails with each of ``problems`` in turn, then succeeds; the files it was asked for."""
    left, asked = list(problems), []

    def download(repository: str, name: str, revision: str | None = None) -> str:
        asked.append(f"{repository}/{name}")
        if left:
            raise left.pop(0)
        return f"/cache/{name}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize(
    "problem",
    [
        answering(503),
        answering(429),
        httpx.ConnectTimeout(""),
        ConnectionResetError(),
        errors.LocalEntryNotFoundError(""),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_passing_problem_is_waited_out(
    problem: Exception, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = failing(monkeypatch, *[problem] * 4)
    said: list[str] = []
    assert fetch_backbone(f"timm:{NAME}", say=said.append) == [Path("/cache/model.safetensors")]
    assert waits == [1, 2, 4, 8]
    assert asked == [f"{REPOSITORY}/model.safetensors"] * 5
    assert said[-1].endswith("try 5 of 5 in 8 s")


def test_after_five_tries_it_is_a_network_error_that_says_what_and_where(
    cache: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = failing(monkeypatch, *[answering(503)] * 9)
    with pytest.raises(NetworkError) as raised:
        fetch_backbone(f"timm:{NAME}")
    assert str(raised.value) == (
        f"timm:{NAME} needs model.safetensors of {REPOSITORY}, which is not in {cache} and could not be downloaded in "
        "5 tries: status 503; run this again later"
    )
    assert raised.value.exit_code == 8
    assert len(asked) == 5


def test_the_servers_own_wait_is_obeyed(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    cause = errors.LocalEntryNotFoundError("")
    cause.__cause__ = answering(429, **{"Retry-After": "11"})
    failing(
        monkeypatch,
        answering(429, **{"Retry-After": "7"}),
        answering(503, **{"retry-after": date}),
        cause,
        answering(503, **{"Retry-After": "soon"}),
    )
    fetch_backbone(f"timm:{NAME}")
    assert waits == [7, pytest.approx(30, abs=2), 11, 8]


def test_a_wait_of_more_than_a_minute_is_left_to_the_user(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, answering(429, **{"Retry-After": "300"}))
    with pytest.raises(NetworkError, match=r"in 1 try: status 429; the server asks to wait 300 s"):
        fetch_backbone(f"timm:{NAME}")
    assert waits == []


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (errors.GatedRepoError, r"accept them on its page and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "there is no such repository; if it is private, set HF_TOKEN"),
        (errors.RevisionNotFoundError, "there is no such revision"),
    ],
)
def test_what_will_not_pass_is_said_at_once(
    kind: Any, kept: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = httpx.Request("GET", "http://127.0.0.1/file")
    asked = failing(monkeypatch, kind("no", response=httpx.Response(404, request=request)))
    with pytest.raises(ConfigError, match=rf"timm:{NAME} needs model\.safetensors of {REPOSITORY}.*{kept}"):
        fetch_backbone(f"timm:{NAME}")
    assert (len(asked), waits) == (1, [])


def test_a_refusal_and_a_full_disk_are_not_tried_again(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, answering(403), OSError(errno.ENOSPC, "No space left on device", "/cache/x"))
    with pytest.raises(NetworkError, match="refused with status 403"):
        fetch_backbone(f"timm:{NAME}")
    with pytest.raises(StorageError, match="cannot write /cache/x: No space left"):
        fetch_backbone(f"timm:{NAME}")
    failing(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):  # a bug is a bug
        fetch_backbone(f"timm:{NAME}")
    assert waits == []


def test_an_interruption_passes_through(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = failing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        fetch_backbone(f"timm:{NAME}")
    assert (len(asked), waits) == (1, [])


def test_offline_nothing_is_tried_and_the_message_says_so(
    cache: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError) as raised:
        fetch_backbone(f"timm:{NAME}")
    assert str(raised.value) == (
        f"timm:{NAME} needs model.safetensors of {REPOSITORY}, which is not in {cache}, and HF_HUB_OFFLINE is set; "
        "unset it, or fetch where there is a network and copy that folder"
    )
    with pytest.raises(NetworkError, match=rf"seresnet18-4bb0ce65\.pth, which is not in {tmp_path}"):
        fetch_backbone("timm:legacy_seresnet18.in1k")
    with pytest.raises(NetworkError, match="hf:openai/clip-vit-base-patch32 needs"):
        fetch_backbone("hf:openai/clip-vit-base-patch32")
    assert waits == []


def snapshots(monkeypatch: pytest.MonkeyPatch, folder: Path, repositories: dict[str, list[str]]) -> None:
    """The client that gets files by pattern, from repositories with these files."""
    from huggingface_hub.utils import filter_repo_objects

    def download(repository: str, *, revision: str | None, **patterns: list[str]) -> str:
        place = folder / repository.replace("/", "--")
        place.mkdir(exist_ok=True)
        for name in filter_repo_objects(repositories[repository], **patterns):
            (place / name).write_text(f"{repository}@{revision}")
        return str(place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def test_of_transformers_the_weights_are_safetensors_and_pickles_only_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["config.json", "merges.txt", "preprocessor_config.json", "tokenizer.json", "spiece.model"]
    others = ["README.md", "onnx/model.onnx", "onnx/config.json", "flax_model.msgpack", "model.fp16.safetensors"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    repositories = {
        "org/one": [*settings, *others, "model.safetensors", "pytorch_model.bin"],
        "org/shards": [*settings, *others, *shards, "pytorch_model.bin"],
        "org/old": [*settings, *others, "pytorch_model.bin"],
    }
    snapshots(monkeypatch, tmp_path, repositories)

    def names(spec: str, weights: str | None = None) -> set[str]:
        return {path.name for path in fetch_backbone(spec, weights)}

    assert names("hf:org/one") == {*settings, "model.safetensors"}
    assert names("hf:org/shards@v1") == {*settings, *shards}
    assert (tmp_path / "org--shards" / shards[0]).read_text() == "org/shards@v1"
    assert names("hf:org/old") == {*settings, "pytorch_model.bin"}
    (tmp_path / "org--one").rename(tmp_path / "before")
    assert names("hf:org/one", "random:0") == set(settings)


def test_a_folder_of_transformers_needs_nothing_if_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = failing(monkeypatch)
    with pytest.raises(ConfigError, match=r"the folder has no config\.json"):
        fetch_backbone(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    for name in ("preprocessor_config.json", "tokenizer.json"):
        (tmp_path / name).touch()
    assert fetch_backbone(f"hf:{tmp_path}", "random:0") == []
    with pytest.raises(ConfigError, match=r"the folder has no model\.safetensors"):
        fetch_backbone(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").touch()
    assert fetch_backbone(f"hf:{tmp_path}") == []
    assert asked == []


def test_of_a_folder_of_open_clips_comes_the_text_towers_configuration_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    text = {"hf_model_name": "org/tower", "hf_tokenizer_name": "org/tower"}
    config = {**library.get_model_config("ViT-B-32"), "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    (folder / "open_clip_model.safetensors").touch()
    snapshots(monkeypatch, tmp_path, {"org/tower": ["config.json", "tokenizer.json", "model.safetensors"]})
    found = fetch_backbone(f"open_clip:local-dir:{folder}")
    assert [p.name for p in found] == ["config.json", "tokenizer.json"]
    (folder / "org/tower").mkdir(parents=True)
    (folder / "org/tower/config.json").touch()
    assert fetch_backbone(f"open_clip:local-dir:{folder}") == []


def test_of_open_clip_come_weights_and_the_text_towers_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = failing(monkeypatch)
    names = library.get_model_config("xlm-roberta-base-ViT-B-32")["text_cfg"]
    snapshots(
        monkeypatch, tmp_path, {names["hf_tokenizer_name"]: ["tokenizer.json", "config.json", "model.safetensors"]}
    )
    found = fetch_backbone("open_clip:xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k")
    assert {p.name for p in found} == {"open_clip_model.safetensors", "tokenizer.json", "config.json"}
    assert asked == ["laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k/open_clip_model.safetensors"]
    with pytest.raises(ConfigError, match="QuickGELU"):  # before anything is downloaded
        fetch_backbone("open_clip:ViT-B-32", "openai")
    assert len(asked) == 1


def test_a_repository_of_open_clips_brings_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = library.get_model_config("ViT-B-32")
    content = json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    asked = []

    def download(repository: str, name: str, revision: str | None = None, **_: object) -> str:
        asked.append(name)
        path = tmp_path / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = fetch_backbone("open_clip:hf-hub:org/clip")
    assert [p.name for p in found] == ["open_clip_config.json", "open_clip_model.safetensors"]
    assert set(asked) == {"open_clip_config.json", "open_clip_model.safetensors"}


def test_what_needs_nothing_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = failing(monkeypatch)
    assert fetch_backbone("tiny") == fetch_backbone("tiny:vit", "random:0") == []
    assert fetch_backbone(f"timm:{NAME}", "random:0") == []
    assert fetch_backbone("open_clip:RN50", "random:0") == []
    assert asked == []


def test_unknown_names_are_refused_before_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = failing(monkeypatch)
    with pytest.raises(ConfigError, match="no tag given for timm:resnet50"):
        fetch_backbone("timm:resnet50")
    for spec, message in {
        "hf:": "hf needs a repository or a folder",
        "hf:a b": "there is no such folder, and a repository is",
        "tiny:vitt": "no 'tiny:vitt'; there are",
    }.items():
        with pytest.raises(ConfigError, match=message):
            fetch_backbone(spec)
    with pytest.raises(ConfigError, match="no 'tim' in clipdg/backbones/"):
        fetch_backbone("tim:resnet50.tv_in1k")
    assert asked == []


FAMILY = """
from clipdg.core.plugins import BackboneFamily, NoSettings

def load(model, weights, config):
    raise NotImplementedError

def downloads(hub, model, weights):
    return {hub.first("org/net", (f"{model}.safetensors",), weights)}

BACKBONE = BackboneFamily(config=NoSettings, load=load, downloads=None)
DECLARED = BackboneFamily(config=NoSettings, load=load, downloads=downloads)
"""


def test_a_family_of_a_users_own_says_what_it_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    package = tmp_path / "own_fetch"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "without.py").write_text(FAMILY)
    (package / "declared.py").write_text(FAMILY.replace("BACKBONE", "OTHER").replace("DECLARED", "BACKBONE"))
    monkeypatch.syspath_prepend(tmp_path)
    asked = failing(monkeypatch, answering(503))  # with the patience that the built-in ones have
    assert fetch_backbone("own_fetch.without:small") == []
    assert asked == []
    said: list[str] = []
    assert fetch_backbone("own_fetch.declared:small", say=said.append) == [Path("/cache/small.safetensors")]
    assert asked == ["org/net/small.safetensors"] * 2
    assert waits == [1]
    assert said == ["small.safetensors of org/net: status 503; try 2 of 5 in 1 s"]
    failing(monkeypatch, *[answering(503)] * 5)
    with pytest.raises(NetworkError, match=r"own_fetch\.declared:small needs small\.safetensors of org/net@v1"):
        fetch_backbone("own_fetch.declared:small", "v1")


def test_a_file_that_does_not_say_its_digest_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"net: weights\.pth does not say its SHA-256, so what arrives cannot be"):
        HubClient("net").url("http://127.0.0.1/weights.pth", tmp_path)
