"""`TrainSettings`: everything that decides a training run, as a TOML file says it.

Equal settings give equal weights, on one kind of device and as many processes. Whether a model's sizes fit together is
found out when its `ModelConfig` is made.
"""

import math
from dataclasses import dataclass

from miniserve.errors import InvalidRequestError
from miniserve.model.config import ModelConfig, MoE, Rope
from miniserve.train.precision import MODES


@dataclass(frozen=True)
class ModelSettings:
    """A Qwen3, or a Qwen3-MoE if it has experts; see `ModelConfig` for the sizes.

    Attributes:
        vocabulary: tokens, of which the tokenizer that is made for the text has at most so many.
        experts: of each layer; 0: its feed-forward part is dense, of width `intermediate`.
        experts_per_token, expert_intermediate: of a mixture.
        positions: the longest sequence that is served.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    experts: int = 0
    experts_per_token: int = 2
    expert_intermediate: int = 0
    positions: int = 1024
    rope_theta: float = 10000.0

    def config(self, vocabulary: int | None = None) -> ModelConfig:
        """With as many tokens as the tokenizer has. Raises UnsupportedModelError, see `ModelConfig`."""
        moe = None
        if self.experts:
            moe = MoE(self.experts, self.experts_per_token, self.expert_intermediate, normalize_weights=True)
        return ModelConfig(
            architecture="qwen3_moe" if moe else "qwen3", vocab_size=vocabulary or self.vocabulary,
            hidden_size=self.hidden, num_layers=self.layers, num_heads=self.heads, num_kv_heads=self.kv_heads,
            head_dim=self.head_dim, intermediate_size=self.intermediate, max_position_embeddings=self.positions,
            rms_norm_eps=1e-6, rope=Rope(self.rope_theta), tie_embeddings=True, qk_norm="head", moe=moe,
        )  # fmt: skip


@dataclass(frozen=True)
class TrainSettings:
    """A run.

    Attributes:
        model: what is trained.
        text: a file, or a folder whose .txt files are read in the order of their names.
        steps: updates; a step sees `batch` sequences of `length` tokens, `micro_batch` at a time.
        learning_rate, warmup: see `Cosine`; `weight_decay`: of matrices; `clip`: of the gradient's norm.
        precision: fp32, bf16, fp16 or fp8.
        recompute: keep less, compute layers twice.
        balance, z: weights of a mixture's two losses.
        seed: of weights and batches.
        held_out: share of the text that is never trained on; looked at every `evaluate_every` steps.
        save_every: steps.

    Example:
        >>> from miniserve.train.settings import ModelSettings, TrainSettings
        >>> model = ModelSettings(
        ...     vocabulary=300, hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate=64
        ... )
        >>> settings = TrainSettings(model, text="plays", steps=100, batch=8, length=64, precision="bf16")
        >>> settings.step_tokens, model.config().num_parameters()
        (512, 18944)
    """

    model: ModelSettings
    text: str
    steps: int
    batch: int = 32
    micro_batch: int | None = None
    length: int = 256
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: str = "fp32"
    recompute: bool = False
    balance: float = 0.01
    z: float = 0.001
    seed: int = 0
    held_out: float = 0.05
    evaluate_every: int = 100
    save_every: int = 500

    def __post_init__(self) -> None:
        for name in ("batch", "length", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"{name} is {getattr(self, name)}: it must be 1 at least")
        if self.batch % self.rows:
            raise InvalidRequestError(f"batch ({self.batch}) is not a multiple of micro_batch ({self.rows})")
        if self.precision not in MODES:
            raise InvalidRequestError(f"precision '{self.precision}' is not one of {', '.join(MODES)}")
        for name in ("weight_decay", "balance", "z"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidRequestError(f"{name} is {getattr(self, name)}: it must be 0 at least, and finite")
        if not self.clip > 0:
            raise InvalidRequestError(f"clip is {self.clip}: it must be above 0")
        if self.length > self.model.positions:
            raise InvalidRequestError(
                f"length ({self.length}) is beyond the model's positions ({self.model.positions})"
            )

    @property
    def rows(self) -> int:
        """Sequences that are computed at once."""
        return self.batch if self.micro_batch is None else self.micro_batch

    @property
    def step_tokens(self) -> int:
        """That a step sees."""
        return self.batch * self.length
