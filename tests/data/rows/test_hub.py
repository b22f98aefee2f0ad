"""A repository of the hub, by the libraries' real clients from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import datasets
import layouts
import pytest
from huggingface_hub import constants

import clipdg
from clipdg.core.download_source import Hub
from clipdg.core.errors import ConfigError, DataError, NetworkError
from clipdg.data.rows import open_table

COMMITS = ("a" * 40, "b" * 40)
GIVEN = layouts.samples()
REPOSITORY = "someone/pacs"


class Server:
    """The part of the hub's protocol that reading a data set needs; ``head`` is the commit that main is."""

    def __init__(self, root: Path) -> None:
        self.root, self.head, self.asked = root, COMMITS[0], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.body = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer()

            def answer(self) -> None:
                path = unquote(urlparse(self.path).path)
                outer.asked.append(path)
                api, files = f"/api/datasets/{REPOSITORY}", f"/datasets/{REPOSITORY}/resolve/"
                if path.startswith(files):
                    self.file(path.removeprefix(files))
                elif path in (api, f"{api}/revision/main", f"{api}/revision/{outer.head}"):
                    siblings = [{"rfilename": name} for name in outer.files()]
                    self.json({"id": REPOSITORY, "sha": outer.head, "siblings": siblings, "tags": [], "private": False})
                elif path.startswith(f"{api}/tree/"):
                    below = path.removeprefix(f"{api}/tree/").partition("/")[2]
                    self.json([outer.entry(n) for n in outer.names() if n.startswith(f"{below}/") or not below])
                elif path.startswith(f"{api}/paths-info/"):
                    asked = json.loads(self.body)["paths"] if self.body.startswith(b"{") else []
                    self.json([outer.entry(name) for name in outer.names() if name in asked])
                else:
                    self.missing("RevisionNotFound" if REPOSITORY in path else "RepoNotFound")

            def file(self, rest: str) -> None:
                commit, _, name = rest.partition("/")
                if name not in outer.files():
                    self.missing("EntryNotFound")
                    return
                content = (outer.root / name).read_bytes()
                first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
                part = content[int(first) : int(last) + 1 if last else None]
                self.send_response(206 if "Range" in self.headers else 200)
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(part)))
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(part)

            def json(self, value: Any) -> None:
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def missing(self, code: str) -> None:
                self.send_response(404)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def files(self) -> list[str]:
        return sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())

    def names(self) -> list[str]:
        return sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*"))

    def entry(self, name: str) -> dict[str, Any]:
        path = self.root / name
        kind = "directory" if path.is_dir() else "file"
        return {"type": kind, "path": name, "size": path.stat().st_size, "oid": "0" * 40}

    def downloads(self) -> list[str]:
        return sorted({path.rpartition("/")[2] for path in self.asked if path.endswith((".parquet", ".tar"))})


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Server]]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    started = []

    def start(root: Path) -> Server:
        server = Server(root)
        thread = threading.Thread(target=server.http.serve_forever, daemon=True)
        thread.start()
        started.append((server, thread))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        return server

    yield start
    for server, thread in started:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


@pytest.fixture
def server(serve: Callable[[Path], Server], tmp_path: Path) -> Server:
    """Two splits, train in two files."""
    root = layouts.hub_parquet(tmp_path / "repository", GIVEN)
    return serve(layouts.hub_parquet(root, GIVEN[:4], split="test", shards=1))


def test_only_the_files_of_the_split_that_is_meant_are_downloaded(server: Server) -> None:
    table = open_table(None, Hub(REPOSITORY, split="test"))
    assert [table.read(i) for i in range(len(table))] == [s.content for s in GIVEN[:4]]
    assert server.downloads() == ["test-00000-of-00001.parquet"]
    with pytest.raises(DataError, match="has the splits train, test; name the one that is meant"):
        open_table(None, Hub(REPOSITORY))


def test_a_branch_is_resolved_to_the_commit_that_is_recorded(server: Server) -> None:
    for hub in (Hub(REPOSITORY, split="test"), Hub(REPOSITORY, "main", split="test")):
        table = open_table(None, hub)
        assert table.provenance == {"repository": REPOSITORY, "revision": COMMITS[0], "split": "test"}
        assert table.at(2) == "someone/pacs at aaaaaaa, split test, row 2"
    benchmark = clipdg.load_benchmark("table", repository=REPOSITORY, part="train")
    assert benchmark.provenance["revision"] == COMMITS[0]


def test_what_was_downloaded_is_there_without_a_network(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_table(None, Hub(REPOSITORY, split="train")).digests()
    server.head = COMMITS[1]
    server.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    table = open_table(None, Hub(REPOSITORY, split="train"))
    assert table.provenance["revision"] == COMMITS[0]
    assert table.digests() == before
    for hub in (Hub(REPOSITORY, split="test"), Hub(REPOSITORY, "other", split="train"), Hub("some/other", "c" * 40)):
        with pytest.raises(NetworkError, match="HF_HUB_OFFLINE is set"):
            open_table(None, hub)
    assert server.asked == []


def test_a_commit_needs_no_question_and_named_files_no_list(server: Server) -> None:
    hub = Hub(REPOSITORY, COMMITS[0], data_files=("data/test-00000-of-00001.parquet",))
    assert len(open_table(None, hub)) == 4
    assert not [path for path in server.asked if path.startswith("/api")]
    assert len(open_table(None, Hub(REPOSITORY, COMMITS[0], data_files=("data/train-*.parquet",)))) == len(GIVEN)


def test_a_stream_is_the_same_table_and_downloads_no_file(server: Server, tmp_path: Path) -> None:
    streamed = open_table(None, Hub(REPOSITORY, split="train", streaming=True))
    found = [streamed.read(i) for i in range(len(streamed))], streamed.digests(), list(streamed.column("label"))
    assert not [path for path in tmp_path.glob("hub/**/*") if path.suffix == ".parquet"]
    downloaded = open_table(None, Hub(REPOSITORY, split="train"))
    assert [path for path in tmp_path.glob("hub/**/*") if path.suffix == ".parquet"]
    assert found == ([s.content for s in GIVEN], downloaded.digests(), list(downloaded.column("label")))
    assert streamed.columns == downloaded.columns
    assert streamed.names("label") == downloaded.names("label")
    assert streamed.provenance == downloaded.provenance


def test_a_streams_digests_are_remembered_by_its_commit(server: Server) -> None:
    first = open_table(None, Hub(REPOSITORY, split="train", streaming=True)).digests()
    again = open_table(None, Hub(REPOSITORY, split="train", streaming=True))
    server.asked.clear()
    assert again.digests() == first
    assert server.downloads() == []


def test_shards_are_downloaded_and_never_streamed(serve: Callable[[Path], Server], tmp_path: Path) -> None:
    serve(layouts.litter(layouts.wds(tmp_path / "wds", GIVEN)))
    table = open_table(None, Hub(REPOSITORY))
    assert [table.read(i) for i in range(len(table))] == [s.content for s in GIVEN]
    with pytest.raises(ConfigError, match="whose labels lie among the images: download it instead"):
        open_table(None, Hub(REPOSITORY, streaming=True))


def test_what_there_is_not_is_said(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"there is no such repository"):
        open_table(None, Hub("some/other"))
    with pytest.raises(ConfigError, match=r"someone/pacs@nonsense, and there is no such revision"):
        open_table(None, Hub(REPOSITORY, "nonsense"))
    with pytest.raises(ConfigError, match=r"has no data/none\.parquet"):
        open_table(None, Hub(REPOSITORY, COMMITS[0], data_files=("data/none.parquet",)))
    with pytest.raises(DataError, match=r"has no split 'val'; it has train, test"):
        open_table(None, Hub(REPOSITORY, split="val"))
    with pytest.raises(ConfigError, match="BuilderConfig 'none' not found"):
        open_table(None, Hub(REPOSITORY, config="none", split="train"))
