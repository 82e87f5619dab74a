"""Normal approximations of logistic regressions with a normal prior, of many candidates and prior widths at once.

Letters: C candidates, K scales of the prior's covariance, S asked items, F columns of the design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fitness.estimation.irt import sigmoid

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

LARGEST_STEP = 1e-6  # of a converged solution
FEWEST_HALVINGS = 1e-4  # below this size, a step is given up


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of C candidates as arrays; `asked` is 0 where a candidate has fewer than S answers."""

    design: Array  # [C, S, F]
    offset: Array  # [C, S]
    score: Array  # [C, S]
    asked: Array  # [C, S]

    @classmethod
    def of(cls, design: Array, offset: Array, answers: Sequence[tuple[Array, Positions]]) -> Answers:
        """Return several candidates' answers (scores, positions) side by side; the design is that of all items."""
        asked_CS = np.zeros((len(answers), max(score_S.size for score_S, _ in answers)))
        score_CS, position_CS = np.zeros_like(asked_CS), np.zeros(asked_CS.shape, np.int64)
        for row, (score_S, position_S) in enumerate(answers):
            asked_CS[row, : score_S.size] = 1.0
            score_CS[row, : score_S.size], position_CS[row, : score_S.size] = score_S, position_S
        return cls(design[position_CS], offset[position_CS], score_CS, asked_CS)


@dataclass(frozen=True, eq=False)
class Laplace:
    """Normal approximations of u for each of C candidates and K scales.

    Attributes
    ----------
    mean, covariance
        float64[C, K, F] and float64[C, K, F, F].
    log_evidence
        float64[C, K]: the logarithm of the probability of the candidate's answers under each scale.
    """

    mean: Array
    covariance: Array
    log_evidence: Array

    def share(self, shares: npt.ArrayLike) -> Array:
        """float64[C, K]: the posterior weights of the scales whose prior weights are `shares`."""
        log_share_CK = np.log(shares) + self.log_evidence
        share_CK: Array = np.exp(log_share_CK - log_share_CK.max(-1, keepdims=True))
        return np.asarray(share_CK / share_CK.sum(-1, keepdims=True), np.float64)


def laplace(
    mean_F: Array, covariance_FF: Array, scales: npt.ArrayLike, answers: Answers, start_CKF: Array | None = None
) -> Laplace:
    """Approximate the posteriors of u under the priors N(mean, κ·covariance), for every κ of `scales`.

    The problems are concave. All are solved at once, by Newton's method with step halving.
    """
    score_CKS, asked_CKS = answers.score[:, None], answers.asked[:, None]
    design_CKSF = answers.design[:, None]
    scale_K = np.asarray(scales, np.float64)
    precision_KFF = np.linalg.inv(covariance_FF) / scale_K[:, None, None]

    def at(u_CKF: Array) -> tuple[Array, Array, Array]:
        """The objective, its gradient and its negative Hessian."""
        logit_CKS = answers.offset[:, None] + (design_CKSF @ u_CKF[..., None])[..., 0]
        off_CKF = u_CKF - mean_F
        pull_CKF = (precision_KFF @ off_CKF[..., None])[..., 0]
        log_likelihood_CKS = score_CKS * logit_CKS - np.logaddexp(0, logit_CKS)
        value_CK = (asked_CKS * log_likelihood_CKS).sum(-1) - 0.5 * (off_CKF * pull_CKF).sum(-1)
        p_CKS = sigmoid(logit_CKS)
        residual_CKS = asked_CKS * (score_CKS - p_CKS)
        gradient_CKF = (residual_CKS[..., None, :] @ design_CKSF)[..., 0, :] - pull_CKF
        weight_CKS = asked_CKS * p_CKS * (1 - p_CKS)
        information_CKFF = (design_CKSF * weight_CKS[..., None]).swapaxes(-1, -2) @ design_CKSF + precision_KFF
        return value_CK, gradient_CKF, information_CKFF

    shape = (len(answers.score), len(scale_K), mean_F.size)
    u_CKF: Array = np.broadcast_to(mean_F if start_CKF is None else start_CKF, shape)
    value_CK, gradient_CKF, information_CKFF = at(u_CKF)
    for _ in range(50):
        step_CKF = np.linalg.solve(information_CKFF, gradient_CKF[..., None])[..., 0]
        size_CK = np.ones(shape[:2])
        while True:
            trial_CKF = u_CKF + size_CK[..., None] * step_CKF
            new = at(trial_CKF)
            worse_CK = (new[0] < value_CK) & (size_CK > 0)
            if not worse_CK.any():
                break
            size_CK = np.where(worse_CK, np.where(size_CK > FEWEST_HALVINGS, size_CK / 2, 0.0), size_CK)
        u_CKF, (value_CK, gradient_CKF, information_CKFF) = trial_CKF, new
        if np.abs(size_CK[..., None] * step_CKF).max() < LARGEST_STEP:
            break
    found_CKFF: Array = np.linalg.inv(information_CKFF).astype(np.float64)
    prior_logdet_K = float(np.linalg.slogdet(covariance_FF)[1]) + mean_F.size * np.log(scale_K)
    evidence_CK = value_CK + 0.5 * (np.linalg.slogdet(found_CKFF)[1] - prior_logdet_K)
    return Laplace(u_CKF, found_CKFF, evidence_CK)


def averaged_sigmoid(logit: Array, variance: Array) -> Array:
    """Return E σ(x) for x ~ N(logit, variance), by the probit approximation (MacKay 1992)."""
    return sigmoid(logit / np.sqrt(1 + np.pi / 8 * variance))
