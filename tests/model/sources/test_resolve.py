"""Names to files: paths, aliases, and a small stand-in for the Hugging Face Hub on loopback with the real client."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from miniserve.errors import CorruptFileError, ModelNotFoundError, UnsafeWeightsError
from miniserve.model.sources.aliases import Alias
from miniserve.model.sources.resolve import cached, resolve

TIMEOUT_S = 30


@pytest.fixture
def directory(tmp_path) -> Path:
    """A model directory in the Hub's layout."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file({"w": np.zeros(4, np.float32)}, path / "model.safetensors")
    return path


def test_a_directory_and_a_gguf_file_resolve_to_themselves(directory, tmp_path):
    files = resolve(str(directory))
    assert (files.kind, files.path, files.source) == ("directory", directory, "local directory")
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    assert (resolve(str(gguf)).kind, resolve(str(gguf)).path) == ("gguf", gguf)
    assert cached(str(gguf)) == resolve(str(gguf))


def test_the_gguf_magic_counts_not_the_file_name(tmp_path):
    (tmp_path / "sha256-abc").write_bytes(b"GGUF....")
    assert resolve(str(tmp_path / "sha256-abc")).kind == "gguf"
    (tmp_path / "README.md").write_text("# hello")
    with pytest.raises(ModelNotFoundError, match="neither a GGUF file nor a directory"):
        resolve(str(tmp_path / "README.md"))


def test_a_directory_with_one_gguf_resolves_to_it(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path)).path == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"a\.gguf, b\.gguf"):
        resolve(str(tmp_path))


def test_a_home_relative_path_is_expanded(directory, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert resolve("~/model").path == directory


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_pickles_are_refused_with_a_reason(directory, suffix):
    (directory / "model.safetensors").unlink()
    pickle = directory / f"pytorch_model.{suffix}"
    pickle.write_bytes(b"")
    for name in (directory, pickle):
        with pytest.raises(UnsafeWeightsError, match=r"(?s)pickle.*run code.*safetensors"):
            resolve(str(name))


def test_a_pickle_beside_safetensors_is_left_alone(directory):
    (directory / "training_args.bin").write_bytes(b"")
    assert resolve(str(directory)).kind == "directory"


def test_an_incomplete_directory_says_what_is_missing(directory):
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model.safetensors", "v": "gone.safetensors"}}))
    with pytest.raises(CorruptFileError, match=r"missing: gone\.safetensors"):
        resolve(str(directory))
    for text in ("{", "[]", '{"weight_map": []}', '{"weight_map": {"w": 1}}'):
        index.write_text(text)
        with pytest.raises(CorruptFileError, match=r"index\.json: (not valid JSON|a JSON object|weight_map)"):
            resolve(str(directory))
    index.unlink()
    (directory / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        resolve(str(directory))
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="without weights"):
        resolve(str(directory))


def test_a_lone_safetensors_file_points_to_its_directory(directory):
    with pytest.raises(ModelNotFoundError, match=f"give their directory, {directory}"):
        resolve(str(directory / "model.safetensors"))


@pytest.mark.parametrize("name", ["./no/such", "../no", "/no/such", "~/no-such-model", "no.gguf", "a/no.safetensors"])
def test_a_path_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no such file or directory"):
        resolve(name)


@pytest.mark.parametrize("name", ["~nobody-of-that-name/model", "x" * 5000])
def test_a_path_that_cannot_be_looked_at_is_named(name):
    with pytest.raises(ModelNotFoundError, match="cannot be looked at"):
        resolve(name)


@pytest.mark.parametrize("name", ["smolm2", "SmolLM2", "nothing-like-it", "", "a/b/c", "org/", "-x/y", "a b/c"])
def test_an_unknown_name_lists_what_is_accepted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"short name \(smollm2, tiny-moe\).*\.gguf.*org/name") as caught:
        resolve(name)
    assert ("Did you mean smollm2?" in str(caught.value)) == (name in {"smolm2", "SmolLM2"})
    assert cached(name) is None


def test_a_path_comes_before_an_alias_and_the_table_is_a_parameter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINISERVE_CACHE", str(tmp_path / "cache"))
    alias = Alias("tiny", "", "", "nobody/tiny", "", "p", "1", "p.whl", 1, "0" * 64, "p/tiny.gguf", 4, "0" * 64)
    assert cached("tiny", aliases={"tiny": alias}) is None
    with pytest.raises(ModelNotFoundError, match="p==1"):
        resolve("tiny", offline=True, aliases={"tiny": alias})
    alias.path.parent.mkdir(parents=True)
    alias.path.write_bytes(b"GGUF")
    files = resolve("tiny", offline=True, aliases={"tiny": alias})
    assert (files.kind, files.path) == ("gguf", alias.path)
    assert cached("tiny", aliases={"tiny": alias}) == files
    Path("tiny").mkdir()
    Path("tiny/here.gguf").write_bytes(b"GGUF")
    assert resolve("tiny", aliases={"tiny": alias}).source == "local directory"


COMMIT = "1" * 40
WEIGHTS = save({"w": np.arange(50_000, dtype=np.float32)})
REPOSITORIES = {
    "good": {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": WEIGHTS, "extra.bin": b"pickle"},
    "pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "gated": {"config.json": b"{}", "model.safetensors": WEIGHTS},
    "ggufs": {"a-Q4.gguf": b"GGUF", "a-Q8.gguf": b"GGUF"},
    "empty": {"README.md": b""},
}
RESOLVE = """
import json, sys
from miniserve.errors import MiniserveError
from miniserve.model.sources.resolve import cached, cached_hub_models, resolve
try:
    files = resolve(sys.argv[1])
    same = cached(sys.argv[1]) == files and list(cached_hub_models()) == [files]
    print(json.dumps({"path": str(files.path), "kind": files.kind, "cached": same, "torch": "torch" in sys.modules}))
except MiniserveError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error), "cached": cached(sys.argv[1])}))
"""


class Hub(http.server.ThreadingHTTPServer):
    """The few pages of the Hub that a snapshot is made from. `cut`: weights break off half way."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.cut, self.fetched = False, []


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name, rest = (parts[3], parts[4:]) if api else (parts[1], parts[2:])
        files = REPOSITORIES.get(name)
        if files is None:
            self.reply(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif api and rest[:1] == ["tree"]:
            self.reply_json([{"type": "file", "path": f, "size": len(c), "oid": oid(c)} for f, c in files.items()])
        elif api:
            siblings = [{"rfilename": f} for f in files]
            self.reply_json({"_id": "1", "id": f"org/{name}", "sha": COMMIT, "siblings": siblings})
        elif name == "gated":
            self.reply(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted"})
        else:
            body = files[rest[-1]]
            if self.command == "GET":
                self.server.fetched.append(rest[-1])
            self.reply(200, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{oid(body)}"'}, rest[-1].endswith("safetensors"))

    def reply_json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes, headers: dict[str, str], may_cut: bool = False) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if may_cut and self.server.cut:
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join(TIMEOUT_S)


@pytest.fixture
def ask(hub, tmp_path):
    """Resolve a name in a process of its own: the Hub's client reads its settings when it is imported."""
    hub.cut, hub.fetched = False, []
    ours = ("HF_", "MINISERVE_", "TRANSFORMERS_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours) and not k.lower().endswith("_proxy")}
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def run(name: str, **more: str) -> dict:
        command = [sys.executable, "-c", RESOLVE, name]
        env = inherited | settings | more
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) | {"stderr": done.stderr}

    return run


def test_hub_a_snapshot_without_pickles_then_offline_and_with_the_hub_down(ask, hub):
    answer = ask("org/good")
    path = Path(answer["path"])
    assert (answer["kind"], answer["cached"], answer["torch"], answer["stderr"]) == ("directory", True, False, "")
    assert {p.name for p in path.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    hub.fetched.clear()
    closed = "http://127.0.0.1:9"
    assert ask("org/good", HF_HUB_OFFLINE="1", HF_ENDPOINT=closed)["path"] == str(path)
    assert ask("org/good", MINISERVE_OFFLINE="1", HF_ENDPOINT=closed)["path"] == str(path)
    down = ask("org/good", HF_ENDPOINT=closed)
    assert down["path"] == str(path)
    assert "using the cached copy" in down["stderr"]
    assert hub.fetched == []


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("pickled", "UnsafeWeightsError", ["pytorch_model.bin", "run code"]),
        ("ggufs", "ModelNotFoundError", ["a-Q4.gguf", "by its path"]),
        ("empty", "ModelNotFoundError", ["no config.json"]),
        ("absent", "ModelNotFoundError", ["no repository org/absent", "private"]),
        ("gated", "DownloadError", ["gated", "accept its terms", "HF_TOKEN"]),
    ],
)
def test_hub_what_cannot_be_used_is_refused_before_any_weight_is_fetched(ask, hub, name, error, words):
    answer = ask(f"org/{name}")
    assert answer["error"] == error, answer
    assert all(word in answer["message"] for word in words), answer["message"]
    assert answer["cached"] is None
    assert hub.fetched == []


def test_hub_a_dropped_connection_is_an_error_and_a_retry_succeeds(ask, hub):
    hub.cut = True
    answer = ask("org/good")
    assert answer["error"] == "DownloadError", answer
    assert "Trying again is safe" in answer["message"]
    assert answer["cached"] is None
    hub.cut = False
    assert (Path(ask("org/good")["path"]) / "model.safetensors").read_bytes() == WEIGHTS


def test_hub_nothing_cached_says_what_to_fetch_and_where(ask, tmp_path):
    offline = ask("org/good", HF_HUB_OFFLINE="1")
    assert offline["error"] == "ModelNotFoundError"
    down = ask("org/good", HF_ENDPOINT="http://127.0.0.1:9")
    assert down["error"] == "DownloadError"
    for answer in (offline, down):
        assert all(word in answer["message"] for word in ("org/good", "safetensors", str(tmp_path / "hf")))
