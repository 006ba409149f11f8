"""Features of an ECG extractor as what a reader calls them: the waves of each lead, the rhythm, the intervals."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WAVES = {
    "P": ("p_mv",),
    "QRS": ("q_mv", "r_mv", "s_mv", "qrs_area"),
    "ST": ("st60_mv",),
    "T": ("t_mv",),
}
_LEAD_REST = ("present", "measured", "log_power")
_ELSEWHERE = {
    "rhythm": ("heart_rate", "rr_", "rhythm_measured", "beats"),
    "PR interval": ("pr_",),
    "QRS duration": ("qrs_ms", "qrs_measured"),
    "QT interval": ("qt_", "qtc_"),
    "axes": ("axis_", "t_axis_"),
    "signal quality": ("usable_leads", "beat_agreement", "noise_mv"),
    "shape (convolutions)": ("conv",),
}
OTHER = "(other features)"


def wave_of(name: str) -> str:
    """``V2 ST`` of ``V2_st60_mv``, or ``V2 spectrum``; ``rhythm``, ``QT interval`` and so on of what has no lead."""
    for group, starts in _ELSEWHERE.items():
        if name.startswith(starts):
            return group
    lead, _, rest = name.partition("_")
    for wave, names in _WAVES.items():
        if rest in names:
            return f"{lead} {wave}"
    return f"{lead} spectrum" if rest in _LEAD_REST or rest.startswith("power_") else OTHER


def is_ecg(names: Sequence[str]) -> bool:
    """Whether features are those of an ECG: some lead has an ST level."""
    return any(name.endswith("_st60_mv") for name in names)


def waves(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The groups in the order in which features name them, and (F,) the group of each feature."""
    each = [wave_of(name) for name in names]
    groups = tuple(dict.fromkeys(each))
    return groups, np.array([groups.index(group) for group in each], dtype=np.int64)
