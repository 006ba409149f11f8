"""What is fitted before the first step has read the member's own train patients and nobody else: a hash proves it."""

import dataclasses

import numpy as np
import pytest

from medfuse.models import ModelSettings
from medfuse.sample import ModalitySample
from medfuse.targets import Survival
from medfuse.training import FoldSettings, TrainSettings, fit_fold


def hashes(cohort, data, outcomes, ids, fusion):
    settings = FoldSettings(
        model=ModelSettings(width=8, fusion={"name": fusion}),
        train=TrainSettings(epochs=1, batch_size=64, device="cpu", patience=0),
        seeds=(0,),
        unimodal=False,
    )
    fold = fit_fold(data, outcomes, train_ids=ids, inner=cohort.inner(ids), settings=settings)
    return [bytes(m.state["fusion.fitted"].tolist()).hex() for m in fold.members]


def altered(cohort, who):
    """The cohort with other expression, times and events of some patients."""
    expression = cohort.data["expression"]
    samples = dict(expression.samples)
    for patient in set(who) & set(samples):
        tokens = np.array(samples[patient].tokens)
        tokens[:, 0] = tokens[::-1, 0] + 1
        samples[patient] = ModalitySample(tokens=tokens, position=samples[patient].position)
    target = cohort.outcomes.targets["os"]
    rows = np.isin(cohort.ids, list(who))
    other = Survival(event=target.event ^ rows, time=target.time * np.where(rows, 0.5, 1.0), observed=target.observed)
    outcomes = dataclasses.replace(cohort.outcomes, targets={**cohort.outcomes.targets, "os": other})
    return {**cohort.data, "expression": dataclasses.replace(expression, samples=samples)}, outcomes


@pytest.mark.parametrize("fusion", ["prototype", "prototype_additive"])
def test_neither_held_out_nor_tuning_patients_are_read_and_each_train_patient_is(cohort, fusion):
    ids, held_out = cohort.ids[:110], cohort.ids[110:]
    plain = hashes(cohort, cohort.data, cohort.outcomes, ids, fusion)
    assert len(set(plain)) == 2
    assert hashes(cohort, *altered(cohort, held_out), ids, fusion) == plain
    tuning = next(i for i in ids[0::2] if i in cohort.data["expression"].samples)  # of the first inner fold alone
    found = hashes(cohort, *altered(cohort, [tuning]), ids, fusion)
    assert found[0] == plain[0]
    assert found[1] != plain[1]
