"""The served model: a run directory behind MLflow's pyfunc interface, logged as code, with safetensors inside."""

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class MedfuseModel(PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """Predicts patients with all members of all folds, averaged, as ``medfuse predict`` does.

    Input: one row per patient, a column ``patient_id`` and columns ``MODALITY.COLUMN``; a missing cell is missing,
    a modality without any cell is absent, and a patient without any modality gets the population estimate.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Read the run; every file is checked against its SHA-256."""
        from medfuse.applying import classes_of
        from medfuse.run import open_run
        from medfuse.training import load_fold

        self._run = open_run(context.artifacts["run"])
        self._run.verify()
        self._folds = [load_fold(self._run.fold_folder(s["name"])) for s in self._run.read("splits")["splits"]]
        self._classes = classes_of(self._run)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predictions as in the file that ``medfuse predict`` writes."""
        from medfuse.applying import apply_run, prediction_table
        from medfuse.run import modalities_from_frame
        from medfuse.types import PatientId

        data = modalities_from_frame(model_input, self._run.read("modalities")["modalities"])
        ids = [PatientId(str(i)) for i in model_input["patient_id"]]
        return prediction_table(apply_run(self._folds, data, ids), folds=self._folds, classes=self._classes)


mlflow.models.set_model(MedfuseModel())
