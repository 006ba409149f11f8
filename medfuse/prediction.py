"""What a model says of patients."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ModelError
from medfuse.types import PatientId


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predictions for n patients; survival outcomes have curves, the others probabilities or values.

    Attributes:
        patient_ids: n ids.
        present: (n, M) bool, which modalities were used for whom.
        modalities: the M names.
        risk_score: (n,) higher = earlier event, or probability of the event class, or the value itself.
        times: (t,) days, grid of ``survival``; None unless the outcome is survival.
        survival: (n, t) in [0, 1], non-increasing along t; None unless the outcome is survival and curves exist.
        probability: (n, K) class probabilities; None unless the outcome has classes.
        value: (n,) predicted values; None unless the outcome is continuous.

    Raises:
        ModelError: shapes disagree, a survival curve increases or leaves [0, 1], or a score is not finite.
    """

    patient_ids: tuple[PatientId, ...]
    present: NDArray[np.bool_]
    modalities: tuple[str, ...]
    risk_score: NDArray[np.float64]
    times: NDArray[np.float64] | None = None
    survival: NDArray[np.float64] | None = None
    probability: NDArray[np.float64] | None = None
    value: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        n = len(self.patient_ids)
        if self.present.shape != (n, len(self.modalities)) or self.risk_score.shape != (n,):
            msg = f"Prediction: {n} patients, but present {self.present.shape} and risk_score {self.risk_score.shape}"
            raise ModelError(msg)
        if not np.isfinite(self.risk_score).all():
            msg = (
                "Prediction: risk_score is not finite for patient "
                f"{self.patient_ids[int(np.argmin(np.isfinite(self.risk_score)))]}"
            )
            raise ModelError(msg)
        if self.survival is not None:
            times = self.times
            if times is None or self.survival.shape != (n, len(times)):
                msg = f"Prediction: survival has shape {self.survival.shape}, expected ({n}, number of times)"
                raise ModelError(msg)
            low, high = self.survival.min(initial=0.0), self.survival.max(initial=0.0)
            if low < 0 or high > 1 or (np.diff(self.survival, axis=1) > 1e-9).any():
                msg = "Prediction: survival must lie in [0, 1] and never increase"
                raise ModelError(msg)

    def __len__(self) -> int:
        return len(self.patient_ids)
