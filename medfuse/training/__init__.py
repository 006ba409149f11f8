"""Fitting: one visible loop, exact resume, members over seeds and inner folds."""

from medfuse.training.competition import competition
from medfuse.training.device import cpu_threads, device_of
from medfuse.training.fit import FittedMember, Progress, fit_member
from medfuse.training.fold import (
    CHOSEN,
    JOINT,
    FoldModel,
    load_fold,
    model_notes,
    predict_fold,
    predict_variants,
    save_fold,
)
from medfuse.training.fold_settings import FoldSettings
from medfuse.training.member import Member, load_member, save_member
from medfuse.training.members import check_fold, fit_fold
from medfuse.training.outcomes import Outcomes
from medfuse.training.settings import TrainSettings

__all__ = [
    "CHOSEN",
    "JOINT",
    "FittedMember",
    "FoldModel",
    "FoldSettings",
    "Member",
    "Outcomes",
    "Progress",
    "TrainSettings",
    "check_fold",
    "competition",
    "cpu_threads",
    "device_of",
    "fit_fold",
    "fit_member",
    "load_fold",
    "load_member",
    "model_notes",
    "predict_fold",
    "predict_variants",
    "save_fold",
    "save_member",
]
