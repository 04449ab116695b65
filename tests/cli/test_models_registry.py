"""`miniserve models register`, `versions`, `sign`, `verify`, `keygen`: from a directory to a model that somebody vouches for."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from miniserve.cli.models import app
from miniserve.errors import (
    AlteredTokenizerError,
    AlteredWeightsError,
    AuditError,
    InvalidRequestError,
    ManifestError,
    ModelNotFoundError,
    SignatureError,
    UnsafeWeightsError,
    UnsignedModelError,
)
from miniserve.model.sources.resolve import cached, resolve
from miniserve.registry.store import Registry

TIMEOUT_S = 60


@pytest.fixture(autouse=True)
def _a_place_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MINISERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINISERVE_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("MINISERVE_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "README.md").write_text("# A model")
    save_file({"w": np.zeros(4, np.float32)}, path / "model.safetensors")
    return path


@pytest.fixture
def key(tmp_path):
    """The public half; the private one is beside it."""
    return invoke("keygen", str(tmp_path / "release.key")).strip()


def invoke(*arguments: str) -> str:
    """Standard output; an error of ours escapes as it is, since `main` is what prints it."""
    result = CliRunner().invoke(app, arguments)
    if result.exception:
        raise result.exception
    return result.stdout


def register(source, *options):
    return invoke("register", "qwen", str(source), "--licence", "MIT", "--by", "ada", *options).strip()


def test_a_model_is_registered_signed_verified_and_found_by_its_name(source, tmp_path, key):
    assert register(source) == "registry:qwen@1"
    assert register(source, "--version", "rc.2", "--parent", "qwen@1", "--from", "a run") == "registry:qwen@rc.2"
    header, first, second = (line.split("\t") for line in invoke("versions", "qwen").splitlines())
    assert header == ["name", "registered", "by", "licence", "parent", "signed", "from"]
    assert first[0] == "qwen@1"
    assert first[2:] == ["ada", "MIT", "-", "no", f"local directory: {source}"]
    assert second[0] == "qwen@rc.2"
    assert second[2:] == ["ada", "MIT", "qwen@1", "no", "a run"]
    private = key.removesuffix(".pub")
    assert invoke("sign", "registry:qwen", "--key", private, "--by", "eve").endswith("rc.2/model.sig\n")
    assert [row["signed"] for row in json.loads(invoke("versions", "--json"))] == [False, True]
    report = json.loads(invoke("verify", "registry:qwen", "--key", key, "--json"))
    assert report["name"] == "registry:qwen@rc.2"
    assert report["signed"] is True
    assert report["verified_key_sha256"] is not None
    assert all(file["sha256"] == file["expected_sha256"] for file in report["files"])
    with pytest.raises(UnsignedModelError, match="qwen/1: not signed"):
        invoke("verify", "registry:qwen@1", "--key", key)
    assert resolve("registry:qwen@1").path == cached("registry:qwen@1").path == tmp_path / "registry" / "qwen" / "1"
    log = Registry().audit
    log.verify()
    assert [(r.who, r.what, r.details["model"]) for r in log.read()] == [
        ("ada", "model.register", "qwen@1"),
        ("ada", "model.register", "qwen@rc.2"),
        ("eve", "model.sign", "qwen@rc.2"),
    ]


def test_what_was_altered_is_refused_by_verify(source, key, tmp_path):
    register(source)
    invoke("sign", "registry:qwen", "--key", key.removesuffix(".pub"))
    version = tmp_path / "registry" / "qwen" / "1"
    for name, error in (("model.safetensors", AlteredWeightsError), ("chat_template.jinja", AlteredTokenizerError)):
        content = (version / name).read_bytes()
        (version / name).chmod(0o644)
        (version / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        for options in ([], ["--key", key]):
            with pytest.raises(error, match=name):
                invoke("verify", "registry:qwen", *options)
        (version / name).write_bytes(content)
    invoke("verify", "registry:qwen", "--key", key)


def test_a_directory_is_signed_where_it_lies(source, key, tmp_path):
    invoke("sign", str(source), "--key", key.removesuffix(".pub"))
    lines = [line.split("\t") for line in invoke("verify", str(source), "--key", key).splitlines()]
    assert [line[2] for line in lines[1:]] == ["matches"] * 4
    other = invoke("keygen", str(tmp_path / "other")).strip()
    with pytest.raises(SignatureError, match="the signature is of the key"):
        invoke("verify", str(source), "--key", other)
    with pytest.raises(InvalidRequestError, match=r"manifest\.json: a registry writes"):
        register(source)


def test_verify_without_a_key_says_that_there_is_a_signature(source, key):
    invoke("sign", str(source), "--key", key.removesuffix(".pub"))
    result = CliRunner().invoke(app, ["verify", str(source)])
    assert "--key says whose it must be" in result.stderr
    result = CliRunner().invoke(app, ["verify", str(source), "--key", key])
    assert "signed by the owner of the key" in result.stderr


def test_a_key_is_encrypted_with_the_password_of_the_environment(source, tmp_path, monkeypatch):
    monkeypatch.setenv("MINISERVE_KEY_PASSWORD", "secret")
    made = json.loads(invoke("keygen", str(tmp_path / "k"), "--json"))
    assert "ENCRYPTED" in (tmp_path / "k").read_text()
    assert (
        json.loads(invoke("sign", str(source), "--key", made["private"], "--json"))["key_sha256"] == made["key_sha256"]
    )
    monkeypatch.delenv("MINISERVE_KEY_PASSWORD")
    with pytest.raises(InvalidRequestError, match="no private key can be read"):
        invoke("sign", str(source), "--key", made["private"])


def test_what_is_not_known_of_a_model_must_be_said(source):
    with pytest.raises(InvalidRequestError, match="--licence says"):
        invoke("register", "qwen", str(source))
    (source / "README.md").unlink()
    with pytest.raises(InvalidRequestError, match=r"no README\.md in it"):
        register(source)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        register(source, "--card", str(source / "nowhere.md"))


def test_the_model_in_the_package_can_be_registered_as_it_is():
    assert invoke("register", "plays", "tiny-moe", "--by", "ada").strip() == "registry:plays@1"
    rows = {row["name"]: row for row in json.loads(invoke("list", "--json"))}
    assert rows["registry:plays@1"]["licence"] == rows["tiny-moe"]["licence"]
    assert rows["registry:plays@1"]["size_bytes"] == rows["tiny-moe"]["size_bytes"]


def test_a_pickle_is_refused_by_its_name(source):
    (source / "extra.bin").write_bytes(b"")
    with pytest.raises(UnsafeWeightsError, match=r"extra\.bin: refused, a pickle"):
        register(source)


def test_names_that_are_not_in_the_registry():
    assert json.loads(invoke("versions", "--json")) == []
    for command in (["verify", "registry:qwen"], ["versions", "qwen"], ["pull", "registry:qwen"]):
        with pytest.raises(ModelNotFoundError, match="no model called 'qwen' in the registry"):
            invoke(*command)
    with pytest.raises(InvalidRequestError, match="is no name in a registry"):
        invoke("verify", "registry:../etc")


def test_a_directory_that_cannot_be_written_to_is_named(source, key, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("miniserve.registry.signing.write_whole", fail)
    with pytest.raises(ManifestError, match="cannot be written to: Permission denied"):
        invoke("sign", str(source), "--key", key.removesuffix(".pub"))


def test_the_audit_log_is_shown_if_it_is_whole(source, tmp_path):
    register(source)
    register(source)
    result = CliRunner().invoke(app, ["audit"])
    assert [line.split("\t")[2:4] for line in result.stdout.splitlines()] == [
        ["who", "what"], ["ada", "model.register"], ["ada", "model.register"],
    ]  # fmt: skip
    log = tmp_path / "registry" / "audit.jsonl"
    kept = Registry().audit.verify()
    assert f"newest hash: {kept}" in result.stderr
    assert json.loads(invoke("audit", str(log), "--json"))[1]["sha256"] == kept
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    invoke("audit")
    with pytest.raises(AuditError, match="the end was cut off"):
        invoke("audit", "--known", kept)
    log.write_bytes(log.read_bytes().replace(b"ada", b"eve"))
    with pytest.raises(AuditError, match="line 1 was altered"):
        invoke("audit")
    with pytest.raises(ModelNotFoundError, match="no such file"):
        invoke("audit", str(tmp_path / "nowhere"))


def test_all_of_it_runs_without_torch(source, tmp_path):
    code = (
        "import sys\nfrom miniserve.cli.models import app\n"
        "def run(*arguments): app(arguments, standalone_mode=False)\n"
        f"run('register', 'a', {str(source)!r}, '--licence', 'MIT')\nrun('keygen', {str(tmp_path / 'k')!r})\n"
        f"run('sign', 'registry:a', '--key', {str(tmp_path / 'k')!r})\n"
        f"run('verify', 'registry:a', '--key', {str(tmp_path / 'k.pub')!r})\nrun('versions')\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
