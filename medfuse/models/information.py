"""How much one representation says of another, as a bound that a model can lower without cheating."""

import torch
from torch import Tensor, nn


class Dependence(nn.Module):
    """Variational upper estimate of the mutual information of x and y, with q(y | x) = N(m(x), 1).

    Two steps that never share a gradient: ``fit_loss`` moves m alone (x and y detached), ``bound`` moves x and y alone
    (m frozen). Done jointly, the sum of both is an average of squared distances, and it falls by shrinking x and y
    rather than by making them independent; that is the fault of the released PIBD code.

    Args:
        inputs: width of x.
        outputs: width of y.
        hidden: width of the hidden layer of m; 0 is a linear map.

    References:
        Cheng et al. (2020), CLUB: a contrastive log-ratio upper bound of mutual information, eq. 8.
        NOTE[DIFF]: x and y are layer-normed where they come from (no reward for shrinking), and the estimate counts
        from 0 upward, because one below 0 only says that m is poor. Both steps are taken at once, from one pass: each
        has the gradient that it would have alone, and taking turns would double the passes.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]
        self.mean = nn.Sequential(*layers) if hidden else nn.Sequential(nn.Linear(inputs, outputs))

    def fit_loss(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """Mean over patients (B,) that count and numbers of (m(x) - y)^2; its gradient reaches m alone."""
        return _mean_of((self.mean(x.detach()) - y.detach()).square(), rows).mean()

    def estimate(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """Estimate in nats per number of y, with m frozen; 0 for fewer than two patients.

        Args:
            x: (B, inputs).
            y: (B, outputs).
            rows: (B,) bool, which patients count.
        """
        frozen = {name: p.detach() for name, p in self.mean.named_parameters()}
        said = torch.func.functional_call(self.mean, frozen, (x,))
        own = _mean_of((said - y).square(), rows)
        # The mean over all pairs of (m(x_b) - y_b')^2 needs no pairs: it is (m - mean y)^2 + var y.
        centre = _mean_of(y, rows)
        others = _mean_of((said - centre).square() + (y - centre).square(), rows)
        found: Tensor = 0.5 * (others - own).mean()
        return found

    def bound(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """The estimate, not below 0; its gradient reaches x and y alone."""
        return self.estimate(x, y, rows).clamp(min=0.0)


def _mean_of(values: Tensor, rows: Tensor) -> Tensor:
    """(L,) mean of values (B, L) over the rows that count; zeros where none does."""
    return torch.where(rows[:, None], values, 0.0).sum(0) / rows.sum().clamp(min=1)
