"""Every error that miniserve raises on purpose.

One rule: bad input ends in one of these, with a message that names the thing (file, field, tensor, parameter) and the
limit it broke, and what to do about it where that is known. Anything else that escapes is a bug of ours.
The command line prints the message alone and exits with `exit_code`.

Example:
    >>> from miniserve.errors import MiniserveError
    >>> from miniserve.hardware.catalog import load_catalog
    >>> try:
    ...     load_catalog().accelerator("h10")
    ... except MiniserveError as error:
    ...     print(error, "| exit code", error.exit_code)
    hardware 'h10' is not in the catalogue; near it: h100, ... | exit code 2
"""


class MiniserveError(Exception):
    """Base of all expected errors. `str(error)` is written for the person who can act on it."""

    exit_code = 1


class ModelNotFoundError(MiniserveError):
    """A model name resolves to nothing on this machine, and nothing could be fetched."""


class DownloadError(ModelNotFoundError):
    """Fetching a model failed or was interrupted; trying again is safe."""


class UnsafeWeightsError(MiniserveError):
    """A model's weights are pickles, which run code when they are loaded, or a program lies among its files."""


class CorruptFileError(MiniserveError):
    """A file is truncated, garbled or not what its name says. The message names the file."""


class ChecksumError(CorruptFileError):
    """A file's SHA-256 differs from the recorded one."""


class AuditError(CorruptFileError):
    """An audit log is not the one that was written. `line` is the first that is wrong, counted from 1."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


class RefusedModelError(MiniserveError):
    """A model is not the one that was registered, or not one that a trusted key has signed."""

    exit_code = 3


class ManifestError(RefusedModelError):
    """A manifest is absent, altered, or not that of the model that was signed."""


class AlteredFileError(RefusedModelError):
    """A file of a model is not the one in its manifest."""


class AlteredWeightsError(AlteredFileError):
    """That file holds weights."""


class AlteredTokenizerError(AlteredFileError):
    """That file is part of a tokenizer, or a chat template."""


class MissingFileError(RefusedModelError):
    """A file of a manifest is not there."""


class ExtraFileError(RefusedModelError):
    """A file lies among a model's that is not in its manifest."""


class SignatureError(RefusedModelError):
    """A signature was altered, or is another key's."""


class UnsignedModelError(SignatureError):
    """There is no signature, and one is needed."""


class TensorError(CorruptFileError):
    """A tensor is missing, unexpected, or has the wrong shape. The message names file and tensor."""


class UnsupportedModelError(MiniserveError):
    """The model asks for something the decoder does not implement. The message names the field and its value."""


class ChatTemplateError(MiniserveError):
    """A chat template is absent, does not parse, or rejected the messages."""


class InvalidRequestError(MiniserveError):
    """A prompt or a parameter is out of range. The message names it and the limit."""

    exit_code = 2


class RankError(MiniserveError):
    """A process that computes a slice of the model failed or ended. The message has its traceback, or how it ended."""
