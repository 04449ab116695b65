"""`Trainer`: the loop. Batches in, smaller losses out; a state that can be saved after any step.

A step: forward and backward over its sequences, a few at a time, gradients added up; clip; AdamW. Of several processes
(`torch.distributed`, one a device) each computes its share of every step's sequences, and gradients are averaged, so
that the step is the one that a single process would have made, up to the order of sums. What is said of a run is the
first process's to say.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from miniserve.errors import InvalidRequestError
from miniserve.model.decoder import Decoder
from miniserve.train.corpus import Corpus
from miniserve.train.forward import forward
from miniserve.train.initialise import decayed
from miniserve.train.losses import Losses, losses
from miniserve.train.precision import Mode, Precision
from miniserve.train.schedule import Cosine
from miniserve.train.settings import TrainSettings

BETAS = (0.9, 0.95)
EVALUATIONS = 8  # micro-batches of the held-out text


class StepReport(NamedTuple):
    """Of one step.

    Attributes:
        step: its number, from 1.
        cross_entropy: mean over its tokens, nats.
        balance, z: a mixture's two other losses, before their weights; 0 for a dense model.
        norm: of the gradient, before it was clipped.
        learning_rate: with which the weights were updated.
        seconds: how long it took.
    """

    step: int
    cross_entropy: float
    balance: float
    z: float
    norm: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Share:
    """This process's among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "Share":
        """As `torch.distributed` knows, if it was begun."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()


class Trainer:
    """A run at one step.

    Args:
        settings: of the run.
        decoder: what is trained, float32, on its device.
        corpus: what from.

    Attributes:
        step: how many have been done.
        optimizer: AdamW.
        precision: what it computes in.

    Raises:
        InvalidRequestError: a step's sequences cannot be shared out among the processes.
    """

    def __init__(self, settings: TrainSettings, decoder: Decoder, corpus: Corpus) -> None:
        self.settings, self.decoder, self.corpus, self.step = settings, decoder, corpus, 0
        self.share = Share.here()
        if settings.rows % self.share.size:
            raise InvalidRequestError(
                f"{settings.rows} sequences at a time cannot be shared out among {self.share.size} processes"
            )
        self._rate = Cosine(settings.learning_rate, settings.steps, settings.warmup)
        self.precision = Precision(cast(Mode, settings.precision), decoder.device)
        matrices, others = decayed(decoder)
        self._parameters = [*matrices, *others]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.learning_rate, betas=BETAS, fused=True,
        )  # fmt: skip
        loss: nn.Module = _Loss(decoder, settings)
        self._loss = DistributedDataParallel(loss) if self.share.size > 1 else loss

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[StepReport]:
        """Do the steps that are left; yield after each. Ends early if `stop()`, asked between two, says so."""
        while self.step < self.settings.steps and not stop():
            yield self._one_step()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Cross entropy of the held-out text, in nats a token; of its first batches, the same each time."""
        total = tokens = 0.0
        for ids, targets in self.corpus.held_out_batches(self.settings.rows, EVALUATIONS):
            found = self._losses(ids, targets)
            total += float(found.cross_entropy) * targets.numel()
            tokens += targets.numel()
        return total / tokens

    def _one_step(self) -> StepReport:
        begin, rate = time.perf_counter(), self._rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.corpus.batch(self.settings.seed, self.step, self.settings.batch)
        pieces = list(zip(*(torch.split(part, self.settings.rows) for part in batch), strict=True))
        means = torch.zeros(3)
        for at, (ids, targets) in enumerate(pieces, 1):
            last = at == len(pieces)
            waiting = self._loss.no_sync() if isinstance(self._loss, DistributedDataParallel) and not last else None
            with waiting or nullcontext():
                mine = slice(self.share.rank, None, self.share.size)
                found = self._losses(ids[mine], targets[mine])
                self.precision.backward(found.total / len(pieces))
            means += torch.stack([found.cross_entropy, found.balance, found.z]).float().cpu() / len(pieces)
        norm = self.precision.step(self.optimizer, self._parameters, self.settings.clip)
        self.step += 1
        cross_entropy, balance, z = self._mean(means).tolist()
        return StepReport(self.step, cross_entropy, balance, z, norm, rate, time.perf_counter() - begin)

    def _losses(self, ids: Tensor, targets: Tensor) -> Losses:
        device = self.decoder.device
        with self.precision.computing():
            return Losses(*self._loss(ids.to(device), targets.to(device)))

    def _mean(self, means: Tensor) -> Tensor:
        """Over all processes."""
        if self.share.size > 1:
            means = means.to(self.decoder.device)
            dist.all_reduce(means)
            means = means.cpu() / self.share.size
        return means


class _Loss(nn.Module):
    """A batch's losses as a module, which is what `DistributedDataParallel` wraps."""

    def __init__(self, decoder: Decoder, settings: TrainSettings) -> None:
        super().__init__()
        self.decoder, self._settings = decoder, settings

    def forward(self, ids: Tensor, targets: Tensor) -> Losses:
        settings, moe = self._settings, self.decoder.config.moe
        activations = forward(self.decoder, ids, recompute=settings.recompute and self.decoder.training)
        each = moe.experts_per_token if moe else 0
        return losses(activations, targets, each, balance=settings.balance, z=settings.z)
