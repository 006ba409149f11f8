"""The contract of every data card: front matter complete, prose there, columns in the files, numbers as counted."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from medfuse.card import resolve_source
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.tables import read_table, to_numeric
from medfuse.targets import Labels, Survival

FOLDER = Path(__file__).parents[1] / "data_cards"
CARDS = sorted(path.stem for path in FOLDER.glob("*.md"))
SECTIONS = [
    "Provenance",
    "Licence and use",
    "Population and outcome",
    "Modalities",
    "Missingness",
    "Known biases",
    "Intended use",
]
TCGA = {
    "tcga_blca": (373, 169),
    "tcga_brca": (956, 130),
    "tcga_gbmlgg": (569, 187),
    "tcga_kirc": (345, 92),
    "tcga_luad": (453, 158),
}
GENES = {
    "tcga_blca": (1554, 256, 371),
    "tcga_brca": (1558, 1333, 21),
    "tcga_gbmlgg": (1544, 30, 16),
    "tcga_kirc": (1556, 937, 10),
    "tcga_luad": (1555, 517, 864),
}


OTHERS = {  # card: outcome, patients, events
    "mcat_blca": ("overall_survival", 373, 169),
    "mcat_luad": ("overall_survival", 453, 158),
    "survpath_blca": ("disease_specific_survival", 359, 113),
}


def data_root() -> Path:
    return Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def test_the_cards_of_the_issue_are_there():
    assert {"transbig", "hancock", *TCGA} <= set(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_complete(name):
    card = read_card(FOLDER / f"{name}.md")
    assert card.name == name
    assert set(card.sources()) == set(card.governance.sha256), "every source has its SHA-256"
    for outcome in card.outcomes.values():
        assert outcome.description
        assert outcome.kind != "survival" or (outcome.event_codes and outcome.censored_codes)
    for modality in card.modalities.values():
        columns = modality.columns if isinstance(modality.columns, dict) else {}
        assert all(spec.unit or spec.levels for spec in columns.values()), "a unit, or levels"


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_prose_that_people_read(name):
    card = read_card(FOLDER / f"{name}.md")
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", card.prose, flags=re.MULTILINE | re.DOTALL))
    for section in SECTIONS:
        found = [text for title, text in parts.items() if title.startswith(section)]
        assert found, section
        assert len(found[0].split()) >= 8, section
    assert "Not for clinical decisions" in card.prose
    assert not re.search(r"TODO|TBD|lorem", card.prose)


@pytest.mark.parametrize("name", sorted(TCGA))
def test_tcga_cards_say_what_the_z_scores_have_seen(name):
    card = read_card(FOLDER / f"{name}.md")
    assert "held-out" in (card.modalities["expression"].zscored_on or "")
    assert "held-out patient has already been seen" in " ".join(card.prose.split())
    assert set(card.modalities["clinical"].columns) == {"age", "is_female"}
    assert card.groups.site == "site"
    assert "oncotree_code" in card.subgroups
    assert "non-commercial" in card.governance.licence


def every_column_is_there(card, root) -> int:
    """Check columns, levels and numbers of every table against its file; returns how many columns were checked."""
    checked = 0
    for modality in card.modalities.values():
        if modality.loader != "tabular":
            continue
        frame = read_table(resolve_source(card, modality.file, root))
        for label, spec in modality.columns.items():
            cells = frame[label].dropna()
            cells = cells[~cells.isin(spec.missing)]
            if spec.kind == "numeric":
                assert np.isfinite(to_numeric(cells, file=modality.file)).all()
            else:
                kept = {re.sub(r"\.0$", "", cell) for cell in cells} - set(spec.missing)
                assert kept == set(spec.levels), f"{label}: the levels are those that occur"
            checked += 1
    return checked


def test_transbig_is_what_its_card_says():
    card = read_card(FOLDER / "transbig.md")
    cohort = read_cohort(card)
    target = cohort.targets["distant_metastasis"]
    assert isinstance(target, Survival)
    assert (cohort.attrition.total, cohort.attrition.modelled, target.n_events) == (198, 198, 51)
    assert cohort.patient_ids[0] == "transbig-001"
    assert (target.time.min(), target.time.max()) == (125, 9108)
    assert every_column_is_there(card, None) == 4
    frame = read_table(resolve_source(card, card.patients.file, None))
    assert sum(name.startswith("X") for name in frame.columns) == 76
    assert (frame["grade"] == "unkown").sum() == 2


@pytest.mark.realdata
@pytest.mark.parametrize("name", sorted(TCGA))
def test_tcga_cohorts_are_what_their_cards_say(name):
    card = read_card(FOLDER / f"{name}.md")
    cohort = read_cohort(card, data_root=data_root())
    target = cohort.targets["overall_survival"]
    patients, deaths = TCGA[name]
    assert (cohort.attrition.total, cohort.attrition.modelled, target.n_events) == (patients, patients, deaths)
    assert f"{patients} patients" in card.prose
    assert f"{deaths} deaths" in card.prose
    frame = read_table(resolve_source(card, card.patients.file, data_root()))
    counts = tuple(sum(c.endswith(suffix) for c in frame.columns) for suffix in ("_rnaseq", "_cnv", "_mut"))
    assert counts == GENES[name]
    assert [
        int(n)
        for n in re.findall(r"has (\d+) genes|`copy_number` (\d+)|`mutation` (\d+)", " ".join(card.prose.split()))
        for n in n
        if n
    ] == list(counts)
    months = frame.drop_duplicates("case_id")["survival_months"].astype(float).to_numpy()
    np.testing.assert_allclose(target.time, months * 30.4375, rtol=1e-12)
    assert every_column_is_there(card, data_root()) == 2


@pytest.mark.realdata
def test_hancock_is_what_its_card_says():
    card = read_card(FOLDER / "hancock.md")
    cohort = read_cohort(card, data_root=data_root())
    assert cohort.attrition.modelled == 763
    assert cohort.patient_ids[0] == "001"
    found = {}
    for name, target in cohort.targets.items():
        events = target.n_events if isinstance(target, Survival) else int(target.label[target.observed].sum())
        assert isinstance(target, Survival | Labels)
        found[name] = (int(target.observed.sum()), events)
    assert found == {
        "overall_survival": (763, 213),
        "relapse_free_survival": (753, 293),
        "recurrence": (667, 150),
        "death": (674, 124),
    }
    for name, (known, events) in found.items():
        assert f"| `{name}` | {known} | {events} |" in card.prose
    assert every_column_is_there(card, data_root()) == 4 + 15 + 16 + 40 + 4
    assert len(card.modalities) == 6
    assert len(card.modalities["histology"].files) == 8


@pytest.mark.realdata
def test_hancock_outcomes_follow_the_published_definition():
    card = read_card(FOLDER / "hancock.md")
    cohort = read_cohort(card, data_root=data_root())
    frame = read_table(resolve_source(card, card.patients.file, data_root())).set_index("patient_id")
    last, recurred = (frame[c].astype(float) for c in ("days_to_last_information", "days_to_recurrence"))
    yes = (frame["recurrence"] == "yes") & (recurred <= 3 * 365)
    no = (frame["recurrence"] == "no") & ((last > 3 * 365) | (frame["survival_status"] == "living"))
    target = cohort.targets["recurrence"]
    np.testing.assert_array_equal(target.observed, (yes | no).to_numpy())
    np.testing.assert_array_equal(target.label[target.observed], yes[yes | no].to_numpy())
    dropped = frame["survival_status_with_cause"] == "deceased not tumor specific"
    np.testing.assert_array_equal(cohort.targets["death"].observed, ~dropped.to_numpy())


@pytest.mark.realdata
def test_hancock_stages_are_ordered_by_the_files_themselves():
    card = read_card(FOLDER / "hancock.md")
    frame = read_table(resolve_source(card, "features/pathological.csv", data_root()))
    nodes = frame["number_of_positive_lymph_nodes"].astype(float)
    code = frame["pN_stage"].astype(int)
    assert nodes[code == 0].isna().all()
    assert (nodes[code == 1] == 0).all()
    assert (nodes[code > 1] > 0).all()
    columns = card.modalities["pathology"].columns
    assert columns["pN_stage"].kind == columns["pT_stage"].kind == "ordinal"
    assert columns["pN_stage"].missing == ["0"]


@pytest.mark.realdata
@pytest.mark.parametrize("name", OTHERS)
def test_cohorts_of_other_publications_are_what_their_cards_say(name):
    outcome, patients, events = OTHERS[name]
    cohort = read_cohort(read_card(name), data_root=data_root())
    target = cohort.target(outcome, cohort.patient_ids)
    assert isinstance(target, Survival)
    assert (len(target), int(target.event.sum())) == (patients, events)
