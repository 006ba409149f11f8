"""Other patients in the coding of a run: by name, never by position."""

import dataclasses

import numpy as np
import pytest

from medfuse.applying import align
from medfuse.errors import CohortError
from medfuse.preprocessing import dense_matrix, fit_preprocessing, transform
from medfuse.sample import Column, ModalityData, ModalitySample

AGE = Column(name="age", unit="years")
STAGE = Column(name="stage", kind="ordinal", levels=("I", "II", "III"))
SEX = Column(name="sex", kind="categorical", levels=("f", "m"))


def table(columns, **patients):
    """Cells as numbers (level index for coded columns), None where missing."""
    samples = {}
    for patient, cells in patients.items():
        tokens = [[0.0, 0.0] if cell is None else [cell, 1.0] for cell in cells]
        position = np.arange(len(cells), dtype=np.float32)[:, None]
        samples[patient] = ModalitySample(tokens=np.array(tokens, dtype=np.float32), position=position)
    return ModalityData(name="clinical", layout="columns", features=2, columns=tuple(columns), samples=samples)


def aligned(data, columns=(AGE, STAGE, SEX)):
    found = align(data, columns=columns, identities=(), features=2)
    assert found.columns == tuple(columns)
    return {i: [float(v) if o else None for v, o in s.tokens] for i, s in found.samples.items()}


def test_the_same_coding_changes_nothing():
    assert aligned(table((AGE, STAGE, SEX), a=(61, 2, 1), b=(None, 0, None))) == {"a": [61, 2, 1], "b": [None, 0, None]}


def test_columns_are_matched_by_name_and_others_left_out():
    other = Column(name="height", unit="cm")
    assert aligned(table((SEX, other, STAGE, AGE), a=(1, 170, 2, 61))) == {"a": [61, 2, 1]}
    assert aligned(table((SEX, other, STAGE, AGE), b=(None, 170, None, None))) == {}  # nothing that the run knows


def test_levels_are_matched_by_name():
    """Levels found in another cohort's file: fewer, others, or in another order."""
    fewer = dataclasses.replace(STAGE, levels=("II", "III"))
    turned = dataclasses.replace(SEX, levels=("m", "f"))
    assert aligned(table((AGE, fewer, turned), a=(61, 0, 0))) == {"a": [61, 1, 1]}
    more = dataclasses.replace(STAGE, levels=("0", "I", "II", "III", "IV"))
    found = aligned(table((AGE, more, SEX), a=(61, 4, 0), b=(60, 3, 1)))
    assert found == {"a": [61, None, 0], "b": [60, 2, 1]}  # the run knows no stage IV: missing
    numbers = (dataclasses.replace(SEX, levels=("0", "1")), dataclasses.replace(SEX, levels=("0.0", "1.0")))
    assert aligned(table((numbers[1],), a=(1,)), (numbers[0],)) == {"a": [1]}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ((AGE, STAGE), r"expected the run's 3 columns, found no 'sex' \(1 such\); add it"),
        ((dataclasses.replace(AGE, unit="months"), STAGE, SEX), r"'age': .* years, as in the run, found .* months"),
        ((dataclasses.replace(AGE, unit=None), STAGE, SEX), r"'age': expected numeric in unit years.* unit None"),
        ((AGE, dataclasses.replace(STAGE, kind="categorical"), SEX), r"'stage': expected ordinal .*found categorical"),
    ],
)
def test_what_means_something_else_is_refused(columns, said):
    with pytest.raises(CohortError, match=said):
        aligned(table(columns, a=(1,) * len(columns)))


def stains(identities, **patients):
    samples = {
        patient: ModalitySample(
            tokens=np.array([[value, 1.0] for value in cells.values()], dtype=np.float32),
            position=np.array([[identities.index(name)] for name in cells], dtype=np.float32),
        )
        for patient, cells in patients.items()
    }
    return ModalityData(name="stains", layout="vectors", features=2, identities=identities, samples=samples)


def test_token_identities_are_matched_by_name():
    other = stains(("CD8", "NEW", "HE"), a={"CD8": 8.0, "HE": 1.0}, b={"NEW": 5.0}, c={"NEW": 5.0, "HE": 2.0})
    found = align(other, columns=(), identities=("HE", "CD3", "CD8"), features=2)
    assert found.identities == ("HE", "CD3", "CD8")
    shown = {i: dict(zip(s.position[:, 0], s.tokens[:, 0], strict=True)) for i, s in found.samples.items()}
    assert shown == {"a": {2: 8.0, 0: 1.0}, "c": {0: 2.0}}  # b has only a stain that the run does not know
    with pytest.raises(
        CohortError, match=r"expected vectors of 3 features .*found 2 with CD8, NEW, HE; use the extract"
    ):
        align(other, columns=(), identities=("HE",), features=3)
    with pytest.raises(CohortError, match="token identities none, as in the run, found 2 with"):
        align(other, columns=(), identities=(), features=2)
    with pytest.raises(CohortError, match="use the extractor of the run"):
        align(other, columns=(AGE,), identities=(), features=2)


def test_a_stain_that_no_training_patient_has_says_nothing():
    data = stains(("HE", "CD8"), a={"HE": 1.0}, b={"HE": 3.0}, c={"HE": 2.0, "CD8": 1e6}, d={"HE": 2.0, "CD8": -1e6})
    fitted = fit_preprocessing(data, ("a", "b"))
    assert transform(fitted, data.samples["a"]).tokens[0, 0] == -1
    one, two = (transform(fitted, data.samples[i]).tokens for i in "cd")
    np.testing.assert_array_equal(one, two)
    x, _ = dense_matrix(fitted, data, ("c", "d"))
    np.testing.assert_array_equal(x[0], x[1])
