"""The review in Jupyter: the figures of ``medfuse app``, one call each, from the same functions.

page = medfuse.review_patient("runs/mine", "P-17")
page.contributions()
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from medfuse.errors import CohortError, ConfigError, nearest
from medfuse.explain.prototype_record import PrototypeRecord
from medfuse.explained import default_horizon, read_coalitions
from medfuse.exporting import FORMATS, patient_record
from medfuse.figures import importance
from medfuse.pages import BANNER
from medfuse.report_sections import UNITS, importance_rows
from medfuse.review import behaviour, missing, patient_charts, performance, prototype_charts, prototypes
from medfuse.review.charts import Chart
from medfuse.review.patient import PatientView, patient_view
from medfuse.review.source import ReviewRun, open_review
from medfuse.run import Run

PLOTLY = "application/vnd.plotly.v1+json"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A chart of the review as Jupyter shows it: banner, picture, how to read it, what it cannot tell, and its table.

    Attributes:
        chart: the chart.
    """

    chart: Chart

    @property
    def table(self) -> pd.DataFrame:
        """The numbers of the picture."""
        return self.chart.table

    def to_html(self) -> str:
        """A page of its own with the interactive picture, without a request to anywhere."""
        picture = self.chart.figure.to_html(full_html=False, include_plotlyjs=True)
        return (
            f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{escape(self.chart.title)}</title></head>"
            f"<body>{self._above()}{picture}{self._below()}</body></html>"
        )

    def _above(self) -> str:
        return f"<p><small>{escape(BANNER)}</small></p><h3>{escape(self.chart.title)}</h3>"

    def _below(self) -> str:
        return (
            f"<p>{escape(self.chart.how)} {escape(self.chart.cannot)}</p><details><summary>table</summary>"
            f"{self.chart.table.to_html(index=False, escape=True)}</details>"
        )

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        content = json.loads(self.chart.figure.to_json())
        display(HTML(self._above()))  # type: ignore[no-untyped-call]
        display({PLOTLY: content, "text/plain": self.chart.alt}, raw=True)  # type: ignore[no-untyped-call]
        display(HTML(self._below()))  # type: ignore[no-untyped-call]


class PatientPage:
    """The patient page of the review; every method is one of its figures.

    A prediction that the review withholds is withheld here too, until ``withheld=True`` asks for it.
    """

    def __init__(
        self, run: ReviewRun, patient: str, *, at: float | None = None, threshold: float = 0.5, withheld: bool = False
    ) -> None:
        self.run, self.patient, self.threshold = run, patient, threshold
        self.view: PatientView = patient_view(run, patient, at)
        word, reasons = missing.familiarity(run, patient)
        if word == "withheld" and not withheld:
            msg = (
                f"review: expected a patient whose prediction is shown, found one that is withheld ({len(reasons)} "
                "reasons); withheld=True shows it all the same"
            )
            raise CohortError(msg)
        self.familiar, self.reasons = word, reasons

    def curve(self) -> Shown:
        """Survival with its band, beside the training cohort's."""
        if self.run.kind != "survival":
            msg = f"review: expected a survival outcome for a curve, found {self.run.kind}; see risks()"
            raise ConfigError(msg)
        return Shown(chart=patient_charts.curve_chart(self.run, self.view))

    def risks(self) -> Shown:
        """Risks at the horizons, with intervals."""
        return Shown(chart=patient_charts.risks_chart(self.run, self.patient))

    def contributions(self) -> Shown:
        """What each modality contributed; hatched where a prediction behind it has no sound record."""
        bad = missing.unsupported(self.run, self.patient)
        return Shown(chart=patient_charts.contributions_chart(self.view, unsupported=bool(bad)))

    def waterfall(self) -> Shown:
        """The modalities shown one after the other."""
        return Shown(chart=patient_charts.waterfall_chart(self.view))

    def dividends(self) -> Shown:
        """What modalities say alone and together."""
        return Shown(chart=patient_charts.dividends_chart(self.view))

    def over_time(self) -> Shown:
        """Contributions over time."""
        return Shown(chart=patient_charts.over_time_chart(self.view))

    def missing(self) -> Shown:
        """What each missing modality could change.

        Raises:
            ConfigError: it was not computed for this horizon, or nothing is missing.
        """
        found = missing.added(self.run, self.patient, at=self.view.at, threshold=self.threshold)
        if not found:
            why = missing.NOT_COMPUTED if found is None else "this patient has every modality"
            msg = f"review: expected a missing modality to speak of, found none ({why})"
            raise ConfigError(msg)
        return Shown(chart=missing.added_chart(found, threshold=self.threshold, view=self.view))

    def similar(self) -> Shown | str:
        """Outcomes of similar training patients; a sentence where nobody is similar enough."""
        found = missing.similar(self.run, self.patient)
        chart = None if found is None else missing.similar_chart(found, self.view)
        return "no comparable patients" if chart is None else Shown(chart=chart)

    def prototypes(self, modality: str) -> Shown:
        """How like the prototypes of a modality the patient is.

        Raises:
            ConfigError: the run has no stored prototypes, or the patient lacks the modality.
        """
        chart = prototype_charts.likeness_chart(_stored(self.run, self.view.fold, modality), self.patient, modality)
        if chart is None:
            msg = f"review: expected a modality that the patient has, found {modality!r}, which is absent"
            raise ConfigError(msg)
        return Shown(chart=chart)

    def terms(self, label: int = 0) -> Shown:
        """What each prototype adds to the logit of the network shown.

        Raises:
            ConfigError: the run has no stored prototypes, or its logit is no sum of them.
        """
        chart = prototype_charts.terms_chart(_stored(self.run, self.view.fold), self.patient, label)
        if chart is None:
            msg = "review: expected fusion prototype_additive, found one whose logit is no sum; see prototypes()"
            raise ConfigError(msg)
        return Shown(chart=chart)

    def to_html(self) -> str:
        """The patient report, as ``medfuse export`` writes it."""
        return FORMATS["HTML"][1](patient_record(self.run, self.patient, self.view.at)).decode()


def _stored(run: ReviewRun, fold: str, modality: str | None = None) -> PrototypeRecord:
    found = prototypes.prototypes_of(run, fold)
    if found is None:
        msg = f"review: expected stored prototypes, found none. {prototypes.why_none(run)}"
        raise ConfigError(msg)
    if modality is not None and modality not in found.modalities:
        msg = f"review: no modality {modality!r}; {nearest(modality, found.modalities)}"
        raise ConfigError(msg)
    return found


class CohortPage:
    """The performance page of the review, and what the model listens to."""

    def __init__(self, run: ReviewRun) -> None:
        self.run = run

    def models(self) -> Shown:
        """All models on the same held-out patients."""
        return Shown(chart=performance.models_chart(self.run))

    def calibration(self) -> Shown:
        """Observed against predicted.

        Raises:
            ConfigError: not a survival outcome.
        """
        found = self._curves()["calibration"]
        return Shown(chart=performance.calibration_chart({name: found[name] for name in sorted(found, key=float)}))

    def decision(self, horizon: str | None = None) -> Shown:
        """Net benefit at a horizon, default the middle one.

        Raises:
            ConfigError: not a survival outcome, or no such horizon.
        """
        found = self._curves()["decision"]
        names = sorted(found, key=float)
        name = names[len(names) // 2] if horizon is None else horizon
        if name not in found:
            msg = f"review: no horizon {name!r}; {nearest(name, names)}"
            raise ConfigError(msg)
        return Shown(chart=performance.decision_chart(found[name], horizon=name))

    def _curves(self) -> Mapping[str, Any]:
        curves: Mapping[str, Any] = self.run.metrics.get("curves") or {}
        if not curves:
            msg = f"review: expected a survival outcome, found {self.run.kind}; see models()"
            raise ConfigError(msg)
        return curves

    def group(self, name: str) -> Shown:
        """Scores of subgroups.

        Raises:
            ConfigError: the run reports no such grouping.
        """
        if name not in self.run.metrics["groups"]:
            msg = f"review: no subgroups {name!r}; {nearest(name, self.run.metrics['groups'])}"
            raise ConfigError(msg)
        return Shown(chart=performance.group_chart(self.run, name))

    def modalities(self) -> Shown:
        """What the model listens to.

        Raises:
            ConfigError: the run has not been explained.
        """
        chart = behaviour.behaviour(self.run, self.run.default_horizon)
        if chart is None:
            msg = f"{self.run.path}: expected an explained run, found none; run medfuse explain on it"
            raise ConfigError(msg)
        return Shown(chart=chart)

    def prototypes(self, modality: str, *, fold: str | None = None, fitted: bool = False) -> Shown:
        """The prototypes of a modality: size, what became of their training patients, collapse check.

        Args:
            modality: its name.
            fold: outer fold, default the first.
            fitted: also count training patients that the network was fitted on.

        Raises:
            ConfigError: the run has no stored prototypes, or no such modality or fold.
        """
        found = _stored(self.run, self._fold(fold), modality)
        return Shown(
            chart=prototype_charts.sizes_chart(self.run, found, modality, at=self.run.default_horizon, fitted=fitted)
        )

    def prototype_survival(self, modality: str, *, fold: str | None = None, fitted: bool = False) -> Shown:
        """Survival of training patients by the level of their nearest prototype; arguments as of :meth:`prototypes`.

        Raises:
            ConfigError: as there, or the outcome is no survival, or every level has too few patients.
        """
        name = self._fold(fold)
        found = _stored(self.run, name, modality)
        chart = prototype_charts.levels_chart(self.run, found, modality, name, fitted=fitted)
        if chart is None:
            msg = "review: expected a level of 10 patients with known times, found none; see prototypes()"
            raise ConfigError(msg)
        return Shown(chart=chart)

    def _fold(self, fold: str | None) -> str:
        name = next(iter(self.run.splits)) if fold is None else fold
        if name not in self.run.splits:
            msg = f"review: no fold {name!r}; {nearest(name, self.run.splits)}"
            raise ConfigError(msg)
        return name

    def checks(self) -> pd.DataFrame:
        """The stored checks of the explanations; empty where they were not run."""
        return performance.checks_table(self.run)

    def importance_svg(self) -> str:
        """The same as :meth:`modalities`, as the still picture of the report.

        Raises:
            StoreError: the run has not been explained.
        """
        found = read_coalitions(self.run.run, self.run.outcome)
        horizon = default_horizon(self.run.run, found)
        label = 0 if self.run.kind == "multiclass" else None
        unit = UNITS.get(self.run.kind, "log odds")
        return importance(importance_rows(found, horizon=horizon, label=label), unit=unit)


def review_patient(
    run: str | Path | Run,
    patient: str,
    *,
    outcome: str | None = None,
    at: float | None = None,
    threshold: float = 0.5,
    withheld: bool = False,
) -> PatientPage:
    """The patient page of the review, for Jupyter.

    Args:
        run: an explained run.
        patient: key of a held-out patient.
        outcome: default the run's first.
        at: horizon in days (default the run's), or class.
        threshold: risk above which one would act.
        withheld: also show a prediction that the review withholds.

    Raises:
        CohortError: no such patient, or a prediction that is withheld.
        ConfigError: no such outcome or horizon.
        StoreError: the run is not finished or damaged.
    """
    opened = open_review(run.path if isinstance(run, Run) else run, outcome)
    return PatientPage(opened, patient, at=at, threshold=threshold, withheld=withheld)


def review_cohort(run: str | Path | Run, *, outcome: str | None = None) -> CohortPage:
    """The performance page of the review, for Jupyter.

    Raises:
        ConfigError: no such outcome.
        StoreError: the run is not finished or damaged.
    """
    return CohortPage(open_review(run.path if isinstance(run, Run) else run, outcome))
