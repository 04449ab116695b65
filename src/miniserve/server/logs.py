"""Structured logs: one JSON object a line on stderr.

Nothing that a client has sent belongs there. An exception's message may quote what was wrong, so of most kinds there is
only where it was raised and its name. Messages of the machine's troubles (a file, memory, a device) are kept.
"""

import json
import logging
import sys
import time
import traceback

_TOLD = (OSError, MemoryError, RuntimeError)
_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "color_message", "taskName"}


class JSONFormatter(logging.Formatter):
    """A record as JSON: time (UTC), level, logger, message, what `extra` gave, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in vars(record).items() if name not in _STANDARD and value is not None}
        if record.exc_info:
            entry["traceback"] = _traceback(record.exc_info[1])
        return json.dumps(entry, ensure_ascii=False, default=str)


def _traceback(error: BaseException | None) -> str:
    """Of an exception and those that it came from, the first one first."""
    if error is None:
        return ""
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    said = f": {error}" if isinstance(error, _TOLD) and not isinstance(error, RecursionError) else ""
    inside = "".join(map(_traceback, error.exceptions)) if isinstance(error, BaseExceptionGroup) else ""
    return _traceback(earlier) + "".join(traceback.format_tb(error.__traceback__)) + f"{name}{said}\n" + inside


def set_up_logs(level: str) -> None:
    """Have this process log so.

    Args:
        level: "debug", "info", "warning" or "error".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
