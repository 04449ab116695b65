"""`Session`: a training run in a folder: made from settings, or gone on with; and the model that it leaves there.

The folder has the tokenizer (`tokenizer.json`), snapshots while it runs, and at its end the model: weights in bfloat16,
`config.json`, `history.json` with every step's losses. Settings that differ from those a run was begun with are refused
rather than mixed. Of several processes the first one writes.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from miniserve.errors import InvalidRequestError
from miniserve.model.decoder import Decoder
from miniserve.model.save import hf_config, save_weights
from miniserve.tables import to_table
from miniserve.train import snapshot
from miniserve.train.corpus import Corpus
from miniserve.train.initialise import initialise
from miniserve.train.precision import Mode, operators
from miniserve.train.settings import TrainSettings
from miniserve.train.text import END, END_ID, make_tokenizer, read_text, token_ids
from miniserve.train.trainer import Share, StepReport, Trainer


class Session:
    """A run.

    Args:
        settings: of it.
        directory: its folder; made if need be.
        device: where it computes.

    Attributes:
        trainer: at the step that it begins with.
        history: of every step so far, and of every evaluation (`held_out`).

    Raises:
        InvalidRequestError: the text cannot be read, or the folder has a run with other settings. Says which differ.
        CorruptFileError: the folder's snapshot is not whole.
    """

    def __init__(self, settings: TrainSettings, directory: Path, device: torch.device) -> None:
        self.settings, self.directory, self._writes = settings, directory, Share.here().rank == 0
        directory.mkdir(parents=True, exist_ok=True)
        found = snapshot.newest(directory)
        if found:
            _check_same(found.settings, to_table(settings), directory)
        texts = read_text(Path(settings.text))
        self.tokenizer = self._tokenizer(texts)
        config = settings.model.config(self.tokenizer.get_vocab_size())
        ops = operators(cast(Mode, settings.precision))
        decoder = Decoder(config, dtype=torch.float32, device=device, ops=ops)
        initialise(decoder, settings.seed)
        corpus = Corpus(token_ids(self.tokenizer, texts), settings.length, settings.held_out)
        self.trainer, self.history = Trainer(settings, decoder, corpus), list[dict[str, float]]()
        if found:
            snapshot.restore(found, decoder, self.trainer.optimizer)
            self.trainer.precision.scaler.load_state_dict(found.scaler)
            self.trainer.step, self.history = found.step, found.history

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[StepReport]:
        """Train; yield after each step. Saves now and then, and when it ends, be it early."""
        settings, trainer = self.settings, self.trainer
        for report in trainer.run(stop):
            self.history.append({**report._asdict()})
            if report.step % settings.evaluate_every == 0 or report.step == settings.steps:
                self.history[-1]["held_out"] = trainer.evaluate()
            if report.step % settings.save_every == 0:
                self._save()
            yield report
        if trainer.step == settings.steps:
            self._finish()
        elif self.history and trainer.step % settings.save_every:
            self._save()

    def _save(self) -> None:
        if self._writes:
            trainer = self.trainer
            snapshot.save(
                self.directory, trainer.step, trainer.decoder, trainer.optimizer, settings=to_table(self.settings),
                history=self.history, scaler=trainer.precision.scaler.state_dict(),
            )  # fmt: skip

    def _finish(self) -> None:
        """The model as others load it."""
        self._save()
        if not self._writes:
            return
        config = hf_config(self.trainer.decoder.config, torch.bfloat16, bos_token_id=END_ID, eos_token_id=END_ID)
        save_weights(self.trainer.decoder, self.directory / "model.safetensors", torch.bfloat16)
        (self.directory / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        (self.directory / "history.json").write_text(json.dumps(self.history), encoding="utf-8")

    def _tokenizer(self, texts: list[str]) -> Tokenizer:
        """The folder's, or one that is made and put there by the first process."""
        path = self.directory / "tokenizer.json"
        if self._writes and not path.exists():
            make_tokenizer(texts, self.settings.model.vocabulary).save(str(path))
            fields = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
            (self.directory / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")
        if dist.is_initialized():
            dist.barrier()
        return Tokenizer.from_file(str(path))


def _check_same(begun: dict[str, Any], given: dict[str, Any], directory: Path) -> None:
    differ = sorted(name for name in begun.keys() | given.keys() if begun.get(name) != given.get(name))
    if differ:
        raise InvalidRequestError(
            f"{directory} has a run with other settings ({', '.join(differ)}): take them, or another folder"
        )
