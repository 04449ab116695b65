"""From pip's report of what it would install to pins with hashes, which `pip install --require-hashes` holds files to.

    python deploy/lock.py REPORT > requirements.lock

The hashes are those of the files that pip chose for this Python and this platform, at the index that it is set up for.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def lock(report: Mapping[str, Any]) -> Iterator[str]:
    """A line a package, by name. Raises ValueError for a package that came as no file, such as a folder or a branch."""
    for item in sorted(report["install"], key=lambda item: str(item["metadata"]["name"]).lower()):
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        sha256 = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if not sha256:
            raise ValueError(f"{name} {version} has no SHA-256: {item['download_info'].get('url')} is no file")
        yield f"{name}=={version} --hash=sha256:{sha256}"


if __name__ == "__main__":
    print(*lock(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), sep="\n")
