"""How far a student's distribution is from its teacher's, and which way is nearer.

Axes: n places, O outcomes: the tokens of the vocabulary, or the likeliest ones and all others together.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Name = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]


@dataclass(frozen=True)
class Divergence:
    """Which divergence of the student q from the teacher p.

    forward_kl: KL(p, q), which covers all that the teacher may say. Source: Kim and Rush 2016, arXiv:1606.07947, for words.
    reverse_kl: KL(q, p), which keeps to what the teacher would say. Source: Gu et al. 2023, arXiv:2306.08543.
    jsd: beta KL(p, m) + (1 - beta) KL(q, m) with m = beta p + (1 - beta) q; at 0 and 1 its limits are taken, forward and reverse
    KL. Source: Agarwal et al. 2023, arXiv:2306.13649, equation 1, and TRL's `generalized_jsd_loss` for the limits.
    skew_kl: KL(p, alpha p + (1 - alpha) q). skew_reverse_kl: KL(q, alpha q + (1 - alpha) p). Source: Ko et al. 2024,
    arXiv:2402.03898, section 3.1.
    """

    name: Name
    temperature: float = 1.0
    """Both distributions are softmax(logits / temperature)."""
    beta: float = 0.5
    """Of jsd."""
    alpha: float = 0.1
    """Of the skew ones."""

    def compare(self, student_nO: Tensor, teacher_nO: Tensor) -> tuple[Tensor, Tensor]:
        """The divergences (n,) of log probabilities, in nats, and their gradients (n, O) by what the student's are softmax of.

        With D = sum f(q, p), the gradient by the logit of outcome i is q_i (f'_i - sum q f'); each case below has q f', up to
        a constant times q, which that leaves out. An outcome of probability 0 adds nothing, whatever it is compared with.
        """
        q, p = student_nO, teacher_nO
        match self.name:
            case "jsd" if 0.0 < self.beta < 1.0:
                m = _mixture(p, q, self.beta)
                ours = _terms(q, m).mul_(1 - self.beta)
                values = self.beta * _terms(p, m).sum(-1) + ours.sum(-1)
                return values, _centred(ours, q)
            case "skew_kl":
                m = _mixture(p, q, self.alpha)
                pull = (p + q - m).exp_().mul_(self.alpha - 1).masked_fill_(q == -torch.inf, 0.0)
                return _terms(p, m).sum(-1), _centred(pull, q)
            case "skew_reverse_kl":
                m = _mixture(q, p, self.alpha)
                terms = _terms(q, m)
                squares = (2 * q - m).exp_().masked_fill_(q == -torch.inf, 0.0)
                return terms.sum(-1), _centred(terms - self.alpha * squares, q)
        if self.name == "reverse_kl" or (self.name == "jsd" and self.beta == 1.0):
            terms = _terms(q, p)
            return terms.sum(-1), _centred(terms, q)
        return _terms(p, q).sum(-1), q.exp() - p.exp()


def _terms(one: Tensor, other: Tensor) -> Tensor:
    """What each outcome adds to KL(one, other)."""
    return one.exp().mul_(one - other).masked_fill_(one == -torch.inf, 0.0)


def _centred(pull: Tensor, log_probs: Tensor) -> Tensor:
    """`pull` less its sum, shared out by the probabilities; it may be written over."""
    return pull.sub_(log_probs.exp().mul_(pull.sum(-1, keepdim=True)))


def _mixture(one: Tensor, other: Tensor, share: float) -> Tensor:
    """The log probabilities of `share` of one distribution and the rest of the other."""
    log_share, log_rest = torch.tensor([share, 1 - share], dtype=one.dtype, device=one.device).log()
    return torch.logaddexp(one + log_share, other + log_rest)
