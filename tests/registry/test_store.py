"""The registry: versions are whole, found by name, and do not change."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from miniserve.errors import (
    AlteredFileError,
    InvalidRequestError,
    ManifestError,
    MiniserveError,
    ModelNotFoundError,
    UnsafeWeightsError,
)
from miniserve.registry.manifest import MANIFEST, Entry, Manifest
from miniserve.registry.store import Registry
from miniserve.registry.version import Provenance

MADE = Provenance(source="a training run", by="ada", licence="Apache-2.0")
TIMEOUT_S = 60


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


def register(registry, source, name="qwen", **options):
    return registry.register(name, source, **({"card": "# Qwen", "provenance": MADE} | options))


def test_a_version_has_its_files_its_card_and_where_it_is_from(registry, source):
    version = register(registry, source)
    assert version.path == registry.root / "qwen" / "1"
    assert version.reference == "qwen@1"
    assert sorted(p.name for p in version.path.iterdir()) == [
        "card.md", "config.json", MANIFEST, "model.safetensors", "provenance.json",
    ]  # fmt: skip
    assert version.card == "# Qwen"
    assert not version.is_signed
    assert (version.provenance.source, version.provenance.by) == ("a training run", "ada")
    assert version.provenance.source_sha256 == Manifest.of(source).sha256
    assert version.provenance.registered.endswith("+00:00")
    version.manifest.check(version.path)
    assert registry.find("qwen") == version
    assert [p.name for p in registry.root.iterdir() if p.name.startswith(".incoming")] == []


def test_the_source_may_change_afterwards_the_version_does_not(registry, source):
    version = register(registry, source)
    with (source / "model.safetensors").open("r+b") as file:  # in place: a hard link would let it through
        file.write(b"W")
    version.manifest.check(version.path)
    assert (version.path / "model.safetensors").stat().st_mode & 0o222 == 0


def test_the_newest_is_the_last_that_was_registered(registry, source):
    first = register(registry, source, version="2.0")
    second = register(registry, source, version="1.9", provenance=replace(MADE, parent="qwen@2.0"))
    third = register(registry, source)
    fourth = register(registry, source, version="5")
    fifth = register(registry, source)
    assert [each.version for each in registry.versions("qwen")] == ["2.0", "1.9", "3", "5", "6"]
    assert registry.versions("qwen") == (first, second, third, fourth, fifth)
    assert registry.find("qwen") == fifth
    assert registry.find("qwen@1.9").provenance.parent == "qwen@2.0"
    register(registry, source, name="llama")
    assert registry.names() == ("llama", "qwen")


def test_a_version_that_is_there_stays(registry, source):
    version = register(registry, source, version="1")
    (source / "config.json").write_text('{"other": 1}')
    with pytest.raises(InvalidRequestError, match="qwen@1 is registered already"):
        register(registry, source, version="1")
    version.manifest.check(version.path)
    assert registry.versions("qwen") == (version,)


def test_a_gguf_file_is_a_model(registry, tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    version = register(registry, file)
    known = Manifest({"m.gguf": Entry(4, hashlib.sha256(b"GGUF").hexdigest())})
    assert version.provenance.source_sha256 == known.sha256
    assert set(version.manifest.files) == {"m.gguf", "card.md", "provenance.json"}


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "-x", ".hidden", "x" * 65, "a\n", "é"])
def test_names_that_could_lead_elsewhere_are_refused(registry, source, name):
    for attempt in (
        lambda: register(registry, source, name=name),
        lambda: register(registry, source, version=name),
        lambda: registry.versions(name),
        lambda: registry.find(f"qwen@{name}") if register(registry, source, name="qwen") else None,
    ):
        with pytest.raises(InvalidRequestError, match="is no name in a registry"):
            attempt()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py", "strange.dat"])
def test_what_a_model_may_not_have_is_refused_before_anything_is_copied(registry, source, name):
    (source / name).write_bytes(b"")
    with pytest.raises(UnsafeWeightsError, match=f"{name}: refused"):
        register(registry, source)
    assert not registry.root.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"card": " \n"}, "card must say something"),
        ({"provenance": replace(MADE, licence="")}, "must have a licence"),
    ],
)
def test_a_model_of_which_nothing_is_said_is_refused(registry, source, options, says):
    with pytest.raises(InvalidRequestError, match=says):
        register(registry, source, **options)


def test_sources_that_are_no_model(registry, source, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        register(registry, tmp_path / "nowhere")
    with pytest.raises(InvalidRequestError, match="neither a directory nor"):
        register(registry, source / "config.json")
    (source / "model.safetensors").unlink()
    with pytest.raises(InvalidRequestError, match="no weights"):
        register(registry, source)
    (source / MANIFEST).write_text("{}")
    with pytest.raises(InvalidRequestError, match="writes a file of this name itself"):
        register(registry, source)


def test_what_is_not_there_is_said_with_what_is(registry, source):
    register(registry, source)
    with pytest.raises(ModelNotFoundError, match=r"Did you mean qwen\?"):
        registry.find("qwem")
    with pytest.raises(ModelNotFoundError, match=r"no version 7 of 'qwen'.*there are 1"):
        registry.find("qwen@7")
    with pytest.raises(ModelNotFoundError, match="no version 9"):
        register(registry, source, provenance=replace(MADE, parent="qwen@9"))
    assert Registry(registry.root / "elsewhere").names() == ()


def test_a_copy_that_fails_leaves_nothing(registry, source, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "write", fail)
    with pytest.raises(MiniserveError, match=r"qwen: cannot be registered.*No space left"):
        register(registry, source)
    assert registry.names() == ()
    assert [p.name for p in registry.root.iterdir() if p.is_dir()] == []


def test_an_altered_provenance_is_found_out(registry, source):
    version = register(registry, source)
    path = version.path / "provenance.json"
    told = json.loads(path.read_text()) | {"licence": "MIT"}
    path.chmod(0o644)
    path.write_text(json.dumps(told))
    with pytest.raises(AlteredFileError, match=r"provenance\.json"):
        version.manifest.check(version.path)
    path.write_text("{}")
    with pytest.raises(ManifestError, match="absent, or altered"):
        registry.find("qwen")


def test_a_version_in_the_place_of_another_is_found_out(registry, source):
    first, second = register(registry, source), register(registry, source)
    second.path.rename(registry.root / "aside")
    first.path.rename(second.path)
    with pytest.raises(ManifestError, match="these are the files of qwen@1"):
        registry.find("qwen@2")


def test_the_root_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MINISERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MINISERVE_REGISTRY", raising=False)
    assert Registry().root == tmp_path / "cache" / "registry"
    monkeypatch.setenv("MINISERVE_REGISTRY", str(tmp_path / "elsewhere"))
    assert Registry().root == tmp_path / "elsewhere"


def test_two_processes_register_at_once(registry, source):
    """Two processes, each half a second of CPU."""
    code = (
        "import sys\nfrom miniserve.registry.store import Registry\nfrom miniserve.registry.version import Provenance\n"
        "made = Provenance(source='a run', by='ada', licence='MIT')\n"
        "for _ in range(5): Registry(sys.argv[1]).register('qwen', sys.argv[2], card='x', provenance=made)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(registry.root), str(source)]) for _ in range(2)]
    assert [each.wait(TIMEOUT_S) for each in both] == [0, 0]
    versions = registry.versions("qwen")
    assert [each.version for each in versions] == [str(n) for n in range(1, 11)]
    for each in versions:
        each.manifest.check(each.path)
