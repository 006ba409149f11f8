import dataclasses
import json

import numpy as np
import pytest
import simulated
import torch

from medfuse.errors import CohortError, ConfigError, DataError, ModelError, StoreError
from medfuse.files import json_bytes, sha256_bytes
from medfuse.models import ModelSettings
from medfuse.sample import ModalityData
from medfuse.training import (
    FoldSettings,
    Outcomes,
    TrainSettings,
    check_fold,
    fit_fold,
    load_fold,
    load_member,
    predict_fold,
    save_fold,
    save_member,
)
from medfuse.training.checkpoint import weights_sha256, write_arrays
from medfuse.training.fold import chunks, speak
from medfuse.training.members import _jobs
from medfuse.training.score import harrell_c

QUICK = TrainSettings(epochs=4, lr=3e-3, batch_size=64, device="cpu", patience=0, checkpoint_every=1)
SMALL = ModelSettings(width=16)
OUTCOMES = ("os", "recurrence", "size")


def settings(**changes):
    return FoldSettings(**{"model": SMALL, "train": QUICK, "seeds": (0, 1), "unimodal": False, **changes})


@pytest.fixture(scope="module", params=["discrete_hazard", "cox"])
def fold(request, cohort):
    ids = cohort.ids[:110]
    chosen = settings(heads={"os": {"name": request.param}}, unimodal=request.param == "cox")
    return fit_fold(cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=chosen)


def equal(one, two, *, tolerance=0.0):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)
        elif dataclasses.is_dataclass(a):
            equal(a, b, tolerance=tolerance)
        else:
            assert a == b
    return True


def test_members_are_experts_times_inner_folds_times_seeds(fold, cohort):
    joint = ["00-00", "01-00", "00-01", "01-01"]
    assert [m.name for m in fold.members][:4] == joint
    alone = [f"{name}-{modality}" for modality in cohort.data for name in joint]
    assert [m.name for m in fold.members][4:] == (alone if len(fold.experts) > 1 else [])
    assert len({weights_sha256(m.state) for m in fold.members}) == len(fold.members)
    assert fold.modalities == ("clinical", "expression", "stains")
    assert set(fold.out_of_fold) == set(OUTCOMES)
    assert fold.out_of_fold["os"]["chosen"].patient_ids == fold.train_ids == cohort.ids[:110]
    for member in fold.members:
        assert list(member.shapes) == ([member.expert] if member.expert else list(fold.modalities))


def test_predictions_are_valid_and_say_what_the_members_say_together(fold, cohort):
    ids = cohort.ids[110:]
    found = predict_fold(fold, cohort.data, ids)
    assert found["os"].survival.shape == (40, len(fold.ensembles["os"]["chosen"].times))
    assert (np.diff(found["os"].survival, axis=1) <= 0).all()
    np.testing.assert_allclose(found["recurrence"].risk_score, found["recurrence"].probability[:, 1], atol=1e-12)
    np.testing.assert_allclose(found["recurrence"].probability.sum(1), 1)
    np.testing.assert_array_equal(found["size"].value, found["size"].risk_score)
    assert 20 < found["size"].value.mean() < 60  # in mm, not standardised
    assert not found["os"].present[:, 2].all()
    e = fold.ensembles["size"]["chosen"]
    expected = np.zeros(40)
    for x, expert in enumerate(fold.experts):
        z, has = np.zeros(40), np.array([not expert or i in cohort.data[expert].samples for i in ids])
        for k, m in enumerate(fold.members):
            if m.expert == expert:
                said = speak(m, chunks(m, cohort.data, ids))["size"][:, 0]
                z += (said - e.centre[k, 0]) / e.spread[k] / 4
        expected += e.weight[x] * np.where(has, z, 0)
    link = e.level[0] + e.slope * expected
    assert np.abs(meant(e, link, cohort, ids) - link).max() > 0.1
    np.testing.assert_allclose(found["size"].value, meant(e, link, cohort, ids), atol=1e-9)


def meant(ensemble, link, cohort, ids):
    """Links (n,) moved as the pattern of each patient asks."""
    number = [sum((i in one.samples) << bit for bit, one in enumerate(cohort.data.values())) for i in ids]
    return ensemble.patterns.level[number, 0] + ensemble.patterns.slope[number, 0] * link


def test_the_order_of_risks_is_that_of_the_curves(fold, cohort):
    found = predict_fold(fold, cohort.data, cohort.ids[110:])["os"]
    middle = found.survival[:, len(found.times) // 2]
    assert (np.diff(middle[np.argsort(found.risk_score)]) <= 1e-3).all()


def test_a_unimodal_network_never_hears_of_patients_without_its_modality(cohort):
    ids = cohort.ids[:110]
    having = {i for i in ids if i in cohort.data["stains"].samples}
    assert 30 < len(having) < 100
    jobs = _jobs(cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), expert="stains")
    for job, split in zip(jobs, cohort.inner(ids), strict=True):
        assert set(job.train) == having & set(split.train)
        assert set(job.unseen) == having - set(split.train)
        assert list(job.data) == ["stains"]


def test_a_modality_with_too_few_events_has_no_network_of_its_own_and_is_listed(cohort):
    ids = cohort.ids[:110]
    target = cohort.outcomes.targets["os"]
    stains = cohort.data["stains"]
    happened = dict(zip(cohort.ids, target.event, strict=True))
    lucky = {i: sample for i, sample in stains.samples.items() if not happened[i]}
    data = {**cohort.data, "stains": dataclasses.replace(stains, samples=lucky)}
    outcomes = Outcomes(patient_ids=cohort.ids, targets={"os": target})
    chosen = settings(unimodal=True, seeds=(0,))
    fold = fit_fold(data, outcomes, train_ids=ids, inner=cohort.inner(ids), settings=chosen)
    assert fold.experts == ("", "clinical", "expression")
    assert "censored" in fold.skipped["stains"]
    assert any("stains: left out of the experts" in line for line in fold.describe("os"))


def test_a_modality_that_nobody_of_an_inner_fold_has_gets_no_network_of_its_own(cohort):
    ids = cohort.ids[:110]
    stains = cohort.data["stains"]
    inner = cohort.inner(ids, folds=3)
    inside = set(inner[0].train)
    some = {i: sample for i, sample in stains.samples.items() if i in inside}
    data = {**cohort.data, "stains": dataclasses.replace(stains, samples=some)}
    chosen = settings(unimodal=True, seeds=(0,))
    fold = fit_fold(data, cohort.outcomes, train_ids=ids, inner=inner, settings=chosen)
    assert fold.experts == ("", "clinical", "expression")
    assert "found none in inner fold 0" in fold.skipped["stains"]


def test_out_of_fold_comes_only_from_members_that_never_saw_the_patient(fold, cohort):
    ids = cohort.ids[:110]
    inner = cohort.inner(ids)
    unseen = inner[0].tuning
    e = fold.ensembles["size"].get("joint", fold.ensembles["size"]["chosen"])
    z = np.mean(
        [
            (speak(m, chunks(m, cohort.data, unseen))["size"][:, 0] - e.centre[k, 0]) / e.spread[k]
            for k, m in enumerate(fold.members)
            if m.inner == 0 and not m.expert
        ],
        axis=0,
    )
    row = [ids.index(i) for i in unseen]
    found = fold.out_of_fold["size"]["joint" if "joint" in fold.ensembles["size"] else "chosen"].value[row]
    np.testing.assert_allclose(found, meant(e, e.level[0] + e.slope * z, cohort, unseen), atol=1e-9)


def test_batch_of_one_or_many_and_threads_agree(fold, cohort):
    """T2: predictions within 1e-5 for batches of 1 and 64 and for 1 and 2 threads."""
    ids = cohort.ids[86:]
    assert len(ids) == 64
    many = predict_fold(fold, cohort.data, ids)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        other = predict_fold(fold, cohort.data, ids)
    finally:
        torch.set_num_threads(threads)
    for outcome in OUTCOMES:
        scale = 100 if outcome == "size" else 1  # mm, whose standard deviation is about 15
        equal(many[outcome], other[outcome], tolerance=1e-5 * scale)
        for row in (0, 17, 63):
            one = predict_fold(fold, cohort.data, ids[row : row + 1])[outcome]
            assert one.risk_score[0] == pytest.approx(many[outcome].risk_score[row], abs=1e-5 * scale)
            if one.survival is not None:
                np.testing.assert_allclose(one.survival[0], many[outcome].survival[row], atol=1e-5)


def test_a_patient_without_any_modality_gets_one_population_estimate(fold, cohort):
    found = predict_fold(fold, {}, ("nobody", "noone"))
    assert not found["os"].present.any()
    assert found["os"].risk_score[0] == found["os"].risk_score[1]
    assert 0 < found["os"].survival[0, -1] < 1


def test_a_fold_comes_back_from_disk_exactly(fold, cohort, tmp_path):
    save_fold(fold, tmp_path / "0")
    again = load_fold(tmp_path / "0")
    ids = cohort.ids[110:]
    one, two = predict_fold(fold, cohort.data, ids), predict_fold(again, cohort.data, ids)
    assert all(equal(one[o], two[o]) for o in OUTCOMES)
    assert all(equal(p, again.out_of_fold[o][v]) for o in OUTCOMES for v, p in fold.out_of_fold[o].items())
    assert all(equal(p, again.cross_fitted[o][v]) for o in OUTCOMES for v, p in fold.cross_fitted[o].items())
    assert all(equal(e, again.ensembles[o][v]) for o in OUTCOMES for v, e in fold.ensembles[o].items())
    assert again.train_ids == fold.train_ids
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json", ".safetensors"}
    save_fold(fold, tmp_path / "0")  # again: the members are there already
    other = dataclasses.replace(fold, members=tuple(reversed(fold.members)))
    assert load_fold(tmp_path / "0").members[0].name == "00-00" != other.members[0].name


@pytest.mark.parametrize(
    "part",
    [
        "fold.json",
        "fold.safetensors",
        "members/00-01/weights.safetensors",
        "members/01-00/member.json",
        "manifest.json",
    ],
)
def test_damage_anywhere_in_a_fold_names_the_part(fold, tmp_path, part):
    save_fold(fold, tmp_path)
    path = tmp_path / part
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(StoreError, match=path.name.replace(".", r"\.")):
        load_fold(tmp_path)


def test_a_member_of_another_fold_in_the_folder_is_not_overwritten(fold, tmp_path):
    save_member(dataclasses.replace(fold.members[1], seed=0), tmp_path / "members" / "00-00")
    with pytest.raises(StoreError, match="found another"):
        save_fold(fold, tmp_path)


def test_hostile_members_are_refused(fold, tmp_path):
    member = fold.members[0]
    name = next(iter(member.state))
    with pytest.raises(ModelError, match="finite weights"):
        dataclasses.replace(member, state={**member.state, name: member.state[name] * torch.nan})
    swapped = {**member.state, name: member.state[name][..., :-1]}
    with pytest.raises(StoreError, match="weights of this model"):
        dataclasses.replace(member, state=swapped).build()
    save_member(member, tmp_path / "m")
    described = json.loads((tmp_path / "m" / "member.json").read_text())
    described["settings"]["surprise"] = 1
    (tmp_path / "m" / "member.json").write_bytes(json_bytes(described))
    with pytest.raises(StoreError, match="differs from its manifest"):
        load_member(tmp_path / "m")
    reseal(tmp_path / "m", "member.json")
    with pytest.raises(StoreError, match="expected the parts of a member"):
        load_member(tmp_path / "m")
    reseal(tmp_path / "m", "member.json", format_version=99)
    with pytest.raises(StoreError, match="format_version"):
        load_member(tmp_path / "m")


def reseal(folder, part, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    content = (folder / part).read_bytes()
    manifest["files"][part] = {"bytes": len(content), "sha256": sha256_bytes(content)}
    manifest |= changes
    (folder / "manifest.json").write_bytes(json_bytes({**manifest, "sha256": sha256_bytes(json_bytes(manifest))}))


def test_same_seeds_same_fold_and_a_killed_fit_goes_on_to_the_same(cohort, tmp_path):
    ids = cohort.ids[:110]

    def fit(folder=None, watch=lambda member, progress: None):
        return fit_fold(
            cohort.data,
            cohort.outcomes,
            train_ids=ids,
            inner=cohort.inner(ids),
            settings=settings(),
            folder=folder,
            watch=watch,
        )

    class Killed(Exception):
        pass

    def kill(at):
        def watch(member, progress):
            if (member, progress.step) == at:
                raise Killed

        return watch

    expected = [weights_sha256(m.state) for m in fit().members]
    with pytest.raises(Killed):
        fit(tmp_path, kill(("01-00", 3)))
    assert [p.name for p in (tmp_path / "members").iterdir()] == ["00-00"]
    with pytest.raises(Killed):
        fit(tmp_path, kill(("00-01", 2)))
    started = []
    found = fit(tmp_path, lambda member, progress: started.append(member))
    assert set(started) == {"00-01", "01-01"}  # the others were finished
    assert [weights_sha256(m.state) for m in found.members] == expected
    save_fold(found, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fold.json", "fold.safetensors", "manifest.json", "members"]

    other = dataclasses.replace(settings(), train=dataclasses.replace(QUICK, lr=1e-3))
    with pytest.raises(StoreError, match="another folder"):
        fit_fold(cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=other, folder=tmp_path)


def test_rows_outside_the_training_side_change_nothing(cohort):
    """Isolation: nonsense in place of other patients' inputs and outcomes changes no fitted number, bit for bit."""
    ids = cohort.ids[:110]
    outside = set(cohort.ids[110:])
    broken = {
        name: dataclasses.replace(
            data,
            samples={
                i: dataclasses.replace(s, tokens=s.tokens * -3 + 7) if i in outside else s
                for i, s in data.samples.items()
            },
        )
        for name, data in cohort.data.items()
    }
    target = cohort.outcomes.targets["os"]
    flipped = dataclasses.replace(target, event=np.where(np.arange(150) >= 110, ~target.event, target.event))
    outcomes = Outcomes(patient_ids=cohort.ids, targets={"os": flipped})
    one = fit_fold(
        cohort.data,
        simulated.only(cohort, "os").outcomes,
        train_ids=ids,
        inner=cohort.inner(ids),
        settings=settings(unimodal=True),
    )
    two = fit_fold(broken, outcomes, train_ids=ids, inner=cohort.inner(ids), settings=settings(unimodal=True))
    assert [weights_sha256(m.state) for m in one.members] == [weights_sha256(m.state) for m in two.members]
    assert equal(one.out_of_fold["os"]["chosen"], two.out_of_fold["os"]["chosen"])
    assert equal(one.ensembles["os"]["chosen"], two.ensembles["os"]["chosen"])


def reached(n, *, folds, width, unimodal, **train):
    """Harrell's C of a fold's ensemble and of the planted log hazard, in 300 patients that no network saw."""
    cohort = simulated.only(simulated.simulate(n + 300, 3, complete=True), "os")
    ids, held_out = cohort.ids[:n], cohort.ids[n:]
    fold = fit_fold(
        cohort.data,
        cohort.outcomes,
        train_ids=ids,
        inner=cohort.inner(ids, folds=folds),
        settings=FoldSettings(
            model=ModelSettings(width=width),
            train=TrainSettings(device="cpu", modality_dropout=False, **train),
            seeds=(0,),
            unimodal=unimodal,
        ),
    )
    found = predict_fold(fold, cohort.data, held_out)["os"]
    truth = cohort.outcomes.take(held_out)["os"]
    return tuple(harrell_c(truth.event, truth.time, risk) for risk in (found.risk_score, cohort.log_hazard[n:]))


def test_a_planted_signal_is_found():
    found, oracle = reached(500, folds=2, width=16, unimodal=False, epochs=25, lr=1e-2)
    assert oracle > 0.8
    assert found > oracle - 0.13


@pytest.mark.slow
def test_a_planted_signal_is_nearly_reached():
    found, oracle = reached(800, folds=3, width=32, unimodal=True, epochs=30, lr=3e-3)
    assert oracle > 0.8
    assert found > oracle - 0.05


def test_bad_input(cohort):
    ids = cohort.ids[:110]

    def fit(simulation=cohort, *, inner=None, data=None, **changes):
        return fit_fold(
            simulation.data if data is None else data,
            simulation.outcomes,
            train_ids=ids,
            inner=cohort.inner(ids) if inner is None else inner,
            settings=settings(**changes),
        )

    with pytest.raises(CohortError, match="all of them censored") as info:
        fit(simulated.only(simulated.simulate(150, censored=True), "os"))
    assert 'outcome "os", outer training side' in info.value.__notes__[0]
    with pytest.raises(CohortError, match="inner folds"):
        fit(inner=[])
    with pytest.raises(CohortError, match=cohort.ids[120]):
        fit(inner=[simulated.Inner(train=ids, tuning=cohort.ids[120:121])])
    with pytest.raises(ConfigError, match="weibul"):
        fit(heads={"os": {"name": "weibul"}})
    with pytest.raises(CohortError, match="two or more inner folds"):
        fit(inner=[simulated.Inner(train=ids, tuning=())], heads={"os": {"name": "cox"}})
    nobody = ModalityData(name="scan", layout="vectors", features=3, samples={})
    with pytest.raises(DataError) as info:
        fit(data={**cohort.data, "scan": nobody})
    assert 'modality "scan"' in info.value.__notes__[0]
    with pytest.raises(CohortError, match="id twice"):
        Outcomes(patient_ids=("a", "a"), targets={})
    with pytest.raises(CohortError, match="expected 149 patients, found 150"):
        Outcomes(patient_ids=cohort.ids[1:], targets=cohort.outcomes.targets)
    with pytest.raises(CohortError, match="stranger"):
        cohort.outcomes.take(["stranger"])


def test_the_joint_networks_of_a_committee_take_turns(cohort, tmp_path):
    ids = cohort.ids[:110]
    outcomes = dataclasses.replace(cohort.outcomes, targets={"os": cohort.outcomes.targets["os"]})
    chosen = settings(
        model=ModelSettings(width=16, fusion={"name": "transformer", "heads": 2}),
        committee=({"name": "concat"},),
        seeds=(4, 5, 6),
        unimodal=True,
    )
    fold = fit_fold(cohort.data, outcomes, train_ids=ids, inner=cohort.inner(ids), settings=chosen)
    turns = {m.seed: m.settings.fusion["name"] for m in fold.members if not m.expert}
    assert turns == {4: "transformer", 5: "concat", 6: "transformer"}
    assert {m.settings.fusion["name"] for m in fold.members if m.expert} == {"transformer"}
    save_fold(fold, tmp_path / "fold")
    again = predict_fold(load_fold(tmp_path / "fold"), cohort.data, cohort.ids[110:])["os"]
    equal(predict_fold(fold, cohort.data, cohort.ids[110:])["os"], again)
    check_fold(cohort.data, outcomes, train_ids=ids, inner=cohort.inner(ids), settings=chosen)
    unknown = dataclasses.replace(chosen, committee=({"name": "concta"},))
    with pytest.raises(ConfigError, match='did you mean "concat"') as refused:
        check_fold(cohort.data, outcomes, train_ids=ids, inner=cohort.inner(ids), settings=unknown)
    assert refused.value.__notes__ == ["model.committee, fusion 1 of 1"]
    assert dataclasses.replace(chosen, seeds=(4,)).joint(4).fusion["name"] == "transformer"  # one seed: the model's own
    two = dataclasses.replace(chosen, seeds=(4, 5), committee=({"name": "concat"}, {"name": "late"}))
    assert [two.joint(seed).fusion["name"] for seed in two.seeds] == ["transformer", "concat"]
    with pytest.raises(ConfigError, match=r"model\.committee: expected none with train\.merge"):
        dataclasses.replace(chosen, merge=True, model=ModelSettings(fusion={"name": "lego"}))


def test_an_inner_fold_that_cannot_be_read_is_found_before_the_first_step(cohort):
    """Not after the folds before it were fitted, and again whenever the run is taken up."""
    ids = cohort.ids[:110]
    inner = cohort.inner(ids)
    owners = [i for i in inner[0].train if i not in set(inner[1].train)]
    few = dataclasses.replace(
        cohort.data["clinical"], samples={i: cohort.data["clinical"].samples[i] for i in owners}
    )  # nobody of the second inner fold's training side has it
    data = {**cohort.data, "clinical": few}
    with pytest.raises(DataError) as refused:
        check_fold(data, cohort.outcomes, train_ids=ids, inner=inner, settings=settings(), build=False)
    assert f"inner fold 1, {len(inner[1].train)} training patients" in refused.value.__notes__


def test_a_fold_of_before_inner_scores_were_cross_fitted_still_opens(fold, tmp_path, monkeypatch):
    def write_as_before(path, arrays):
        write_arrays(path, {name: array for name, array in arrays.items() if ".crossed." not in name})

    monkeypatch.setattr("medfuse.training.fold.write_arrays", write_as_before)
    save_fold(fold, tmp_path / "0")
    again = load_fold(tmp_path / "0")
    assert all(equal(p, again.cross_fitted[o][v]) for o in OUTCOMES for v, p in fold.out_of_fold[o].items())
