"""The text that a model learns from, and a tokenizer made for it."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from miniserve.errors import InvalidRequestError

END, END_ID = "<|endoftext|>", 0  # between two files, and behind an answer


def read_text(path: Path) -> list[str]:
    """Of a file, or of a folder's .txt files in the order of their names, each with the end of its lines as it is.

    Raises:
        InvalidRequestError: there is none, or one is no UTF-8. Names it.
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise InvalidRequestError(f"{path} has no .txt file")
    texts = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"{file} cannot be read as a text: {error}") from error
    if not any(texts):
        raise InvalidRequestError(f"{path} is empty")
    return texts


def make_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; over bytes as in GPT-2) with at most so many tokens, `END` the first.

    Raises:
        InvalidRequestError: fewer tokens than there are bytes and `END`.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary < len(alphabet) + 1:
        raise InvalidRequestError(f"a vocabulary of {vocabulary}: {len(alphabet) + 1} at least, a token for each byte")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_ids(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    """All texts in a row, each with `END` behind it."""
    return [token for text in texts for token in (*tokenizer.encode(text).ids, END_ID)]
