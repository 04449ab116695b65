"""Serve the built book on this machine only: prints the address, stops cleanly on Ctrl-C.

    python book/_tools/serve.py [folder] [--port 8000]

It takes port 8000, or a free one if that is taken. It builds nothing and listens on the loopback address alone.
"""

import argparse
import functools
import http.server
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files; logs nothing and tells the browser to keep nothing, since pages change with every build."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def end_headers(self) -> None:
        """Add the header that makes a reload show the new build."""
        self.send_header("Cache-Control", "no-store")
        super().end_headers()


def serve(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server of `folder` on the loopback address; port 0, or a port that is taken, means any free one."""
    handler = functools.partial(Quiet, directory=str(folder))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:
        return http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Serve the built book on this machine.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if not (given.folder / "index.html").is_file():
        raise SystemExit(f"{given.folder} holds no built book; run `make book-html` first")
    with serve(given.folder, given.port) as server:
        print(f"The book: http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C stops)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
