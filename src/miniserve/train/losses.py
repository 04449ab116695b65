"""What a step makes smaller: the text's surprise, and of a mixture two terms that keep its routers usable.

A router left alone sends all tokens to few experts, and those learn all there is; hence the balance. Its scores may
grow without any change to what it says, until their exponentials round badly; hence z.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miniserve.train.forward import Activations


class Losses(NamedTuple):
    """Scalars: the sum that is trained on, and what it is the weighted sum of."""

    total: Tensor
    cross_entropy: Tensor
    balance: Tensor
    z: Tensor


def losses(
    activations: Activations, targets: Tensor, experts_per_token: int, *, balance: float = 0.01, z: float = 0.001
) -> Losses:
    """Of a batch.

    Args:
        activations: see `forward`.
        targets: [B, S] int64, each token's successor.
        experts_per_token: of the mixture; anything without one.
        balance, z: weights of the two terms, each a mean over sparse layers.

    Returns:
        Cross entropy in nats a token; `balance` is 1 where all experts have as many tokens, E where one has all.
    """
    entropy = F.cross_entropy(activations.logits, targets.flatten())
    scores = activations.router_logits
    none = entropy.new_zeros(())
    uneven = torch.stack([load_balance(each, experts_per_token) for each in scores]).mean() if scores else none
    large = torch.stack([router_z(each) for each in scores]).mean() if scores else none
    return Losses(entropy + balance * uneven + z * large, entropy.detach(), uneven.detach(), large.detach())


def load_balance(router_logits: Tensor, experts_per_token: int) -> Tensor:
    """E · Σ f_e · P_e: share of choices an expert got, times its mean probability (Fedus et al. 2021, "Switch
    Transformers", equations 4 to 6; for K choices a token f is the share of all T · K).

    The shares have no gradient; the probabilities of experts with large ones are pushed down. [T, E] -> scalar.
    """
    probabilities = router_logits.float().softmax(-1)
    chosen = probabilities.topk(experts_per_token, dim=-1).indices.flatten()
    experts = probabilities.shape[1]
    shares = torch.bincount(chosen, minlength=experts) / len(chosen)
    return experts * (shares * probabilities.mean(0)).sum()


def router_z(router_logits: Tensor) -> Tensor:
    """The mean of log(Σ exp(scores))² (Zoph et al. 2022, "ST-MoE", equation 5). [T, E] -> scalar."""
    return router_logits.float().logsumexp(-1).square().mean()
