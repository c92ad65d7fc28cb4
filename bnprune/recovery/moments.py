"""Second moments, summed over batches, and the affine maps that are fitted to them.

The affine map that predicts x from s best is

    x ~ B s + b,    B = Cov(x, s) (Cov(s, s) + ridge * mean variance * I)^-1,    b = E[x] - B E[s]

Of the samples, the first half of each batch and the second are kept apart (batches of one sample go to either half in
turn). The ridge is the one of `RIDGES` with which the fit to one half predicts the other half best. If x depends on s
linearly, it is a very small one, and the fit is exact up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

RIDGES = (1e-12, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
"""Relative to the mean variance of s."""


@dataclass
class Moments:
    """Sums over samples, in float64; the first dimension is the half.

    Shapes: count (2,), x (2, g, c), s (2, g, c'), xs (2, g, c, c'), ss (2, g, c', c'), energy (2,).
    """

    count: torch.Tensor
    x: torch.Tensor
    s: torch.Tensor
    xs: torch.Tensor
    ss: torch.Tensor
    energy: torch.Tensor
    """Sum of x^T M x, with M the importance."""

    @classmethod
    def zero(cls, x: torch.Tensor, s: torch.Tensor) -> Moments:
        """Return the sums over no samples, for x of shape (g, n, c) and s of shape (g, n, c')."""
        (groups, _, c), known = x.shape, s.shape[2]
        shapes = ((), (groups, c), (groups, known), (groups, c, known), (groups, known, known), ())
        return cls(*(torch.zeros(2, *shape, dtype=torch.float64, device=x.device) for shape in shapes))

    def add(self, x: torch.Tensor, s: torch.Tensor, importance: torch.Tensor) -> None:
        """Add samples; x is (g, n, c), s is (g, n, c'), the importance (g, c, c).

        If n is odd, the half that has fewer samples so far gets one more.
        """
        fewer = int(self.count[1] < self.count[0])
        middle = (x.shape[1] + 1 - fewer) // 2
        weights = importance.to(x)
        for half, part in enumerate((slice(None, middle), slice(middle, None))):
            a, b = x[:, part], s[:, part]
            self.count[half] += a.shape[1]
            # In place: the products are large, and copies of them in float64 would take as long as the products.
            self.x[half].add_(a.sum(1))
            self.s[half].add_(b.sum(1))
            self.xs[half].add_(a.transpose(1, 2) @ b)
            self.ss[half].add_(b.transpose(1, 2) @ b)
            self.energy[half].add_(((a @ weights) * a).sum())

    def averages(self, half: int | None, *, centred: bool) -> Averages:
        """Return means and covariances of one half or, with None, of all samples.

        Unless `centred`, second moments about zero take the place of covariances, and zeros that of means.
        """
        x, s, xs, ss = self._means(half)
        if not centred:
            return Averages(torch.zeros_like(x), torch.zeros_like(s), xs, ss)
        return Averages(x, s, xs - x[..., :, None] * s[..., None, :], ss - s[..., :, None] * s[..., None, :])

    def _means(self, half: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        sums = [value.sum(0) if half is None else value[half] for value in (self.x, self.s, self.xs, self.ss)]
        count = self.count.sum() if half is None else self.count[half]
        x, s, xs, ss = (value / count.clamp(min=1) for value in sums)
        return x, s, xs, ss

    def lost(self, matrix: torch.Tensor, offset: torch.Tensor, importance: torch.Tensor) -> float:
        """Return the mean of e^T M e, with e = x - B s - b, over the variance of x, likewise weighted by M."""
        x, s, xs, ss = self._means(None)
        energy = float(self.energy.sum() / self.count.sum().clamp(min=1))
        variance = energy - float((x[:, None] @ importance @ x[..., None]).sum())
        weighted = importance @ matrix
        quadratic = float((weighted * (matrix @ ss)).sum() - 2 * (weighted * xs).sum())
        shifted = importance @ offset[..., None]
        linear = float((offset[:, None] @ shifted).sum() - 2 * (shifted.transpose(1, 2) @ x[..., None]).sum())
        cross = float(2 * (shifted.transpose(1, 2) @ matrix @ s[..., None]).sum())
        return max(0.0, energy + quadratic + linear + cross) / max(variance, torch.finfo(torch.float64).tiny)


@dataclass(frozen=True)
class Averages:
    """Means and covariances of x and s; shapes as for `Moments`, without the first dimension."""

    x: torch.Tensor
    s: torch.Tensor
    xs: torch.Tensor
    ss: torch.Tensor

    def fit(self, ridge: float) -> torch.Tensor | None:
        """Return B, shape (g, c, c'); None if the covariance of s is singular in spite of the ridge."""
        variance = self.ss.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(torch.float64).tiny)
        identity = torch.eye(self.ss.shape[-1], dtype=self.ss.dtype, device=self.ss.device)
        factor, failed = torch.linalg.cholesky_ex(self.ss + ridge * variance[:, None, None] * identity)
        if bool(failed.any()):
            return None
        return torch.cholesky_solve(self.xs.transpose(1, 2), factor).transpose(1, 2)

    def error(self, matrix: torch.Tensor, importance: torch.Tensor) -> float:
        """Return the mean of e^T M e, with e = x - B s about its mean, less the part that does not depend on B."""
        weighted = importance @ matrix
        return float((weighted * (matrix @ self.ss)).sum() - 2 * (weighted * self.xs).sum())


@dataclass(frozen=True)
class Fit:
    """An affine map x ~ B s + b."""

    matrix: torch.Tensor
    """B, shape (g, c, c')."""
    offset: torch.Tensor
    """b, shape (g, c)."""
    ridge: float


def fit(moments: Moments, importance: torch.Tensor, *, centred: bool) -> Fit | None:
    """Fit x ~ B s + b, with b = 0 unless `centred`; None if s says nothing."""
    first, second = (moments.averages(half, centred=centred) for half in (0, 1))
    whole = moments.averages(None, centred=centred)

    def error(ridge: float) -> float:
        matrix = first.fit(ridge)
        return math.inf if matrix is None else second.error(matrix, importance)

    errors = _searched(error)
    for ridge in sorted((ridge for ridge in errors if errors[ridge] < math.inf), key=errors.__getitem__):
        matrix = whole.fit(ridge)
        if matrix is not None:
            return Fit(matrix, whole.x - (matrix @ whole.s[..., None])[..., 0], ridge)
    return None


def _searched(error: Callable[[float], float]) -> dict[float, float]:
    """Return the errors of the ridges that were tried: from the middle one down, or else up, while the error falls.

    Most fits have their smallest error near the middle, and each one that is left out saves a factorization.
    """
    middle = len(RIDGES) // 2
    errors = {RIDGES[middle]: error(RIDGES[middle])}
    for ridges in (RIDGES[:middle][::-1], RIDGES[middle + 1 :]):
        for ridge in ridges:
            smallest = min(errors.values())
            errors[ridge] = error(ridge)
            if errors[ridge] >= smallest:
                break
        if min(errors.values()) < errors[RIDGES[middle]]:
            break
    return errors
