"""Raw files are found below MEDFUSE_DATA, as tables are: the demonstration prints a command that relies on it."""

import pytest
from gate_cases import card_file

from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.errors import ConfigError
from medfuse.extraction import extract


@pytest.mark.parametrize("named", [True, False])
def test_the_data_root_of_raw_files_is_that_of_the_environment(tmp_path, monkeypatch, named):
    (tmp_path / "notes").mkdir()
    for patient in ("001", "002"):
        (tmp_path / "notes" / f"{patient}.txt").write_text(f"No lesion was seen in {patient}.")
    card = card_file(tmp_path, {"notes": {"loader": "text", "path": "notes/{patient_id}.txt"}}, ids=("001", "002"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDFUSE_DATA", str(tmp_path))
    people = read_cohort(read_card(card))
    if not named:
        monkeypatch.delenv("MEDFUSE_DATA")
        with pytest.raises(ConfigError, match="expected a data root for raw files, found none"):
            extract(people, store_root=tmp_path / "store", workers=0)
        return
    report = extract(people, store_root=tmp_path / "store", workers=0)
    assert [item.status for item in report.items] == ["stored", "stored"]
