"""The synthetic cohort does what it states, and its oracle is right by other ways of computing the same."""

import dataclasses

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize

from medfuse import synthetic
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.cox import fit_cox
from medfuse.dataset import load_modalities
from medfuse.errors import ConfigError
from medfuse.metrics.discrimination import harrell_c
from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.synthetic import MODALITIES, Missing, Process, simulate
from medfuse.synthetic.paper import truth_text
from medfuse.targets import Survival

TIMES = np.array([90.0, 365.0, 730.0, 1500.0])
N = 20_000


@pytest.fixture(scope="module")
def large():
    return simulate(N, seed=11, modalities=("imaging", "pathology", "ecg", "ehr", "reports", "mutations"))


def covariates(latents):
    return np.stack(
        [
            latents.size,
            latents.st,
            latents.slope,
            latents.same_side(),
            latents.density,
            latents.pathway,
            latents.burden,
            *(latents.site == k for k in range(1, 4)),
        ],
        axis=1,
    ).astype(float)


def correlation_z(x, y):
    """Correlation in standard errors under independence."""
    return float(np.corrcoef(x, y)[0, 1] * np.sqrt(len(x)))


def table(simulation, name):
    return np.stack([simulation.data[name].samples[i].tokens[:, 0] for i in simulation.patient_ids]).astype(float)


# --- the process ----------------------------------------------------------------------------------------------------


def test_cox_recovers_the_stated_strengths_and_finds_nothing_else(large):
    fit = fit_cox(covariates(large.latents), large.survival)
    stated = np.array([0.7, 0.5, 0.5, 0.8, *np.zeros(6)])
    z = (fit.coefficients - stated) / fit.standard_errors
    assert np.abs(z).max() < 3.5
    assert fit.standard_errors.max() < 0.04


def test_cox_without_the_pair_finds_no_main_effect_in_either_of_the_two(large):
    x = covariates(large.latents)[:, [0, 1, 2, 4, 5]]
    fit = fit_cox(x, large.survival)
    assert np.abs(fit.coefficients[3:] / fit.standard_errors[3:]).max() < 3.5
    assert (fit.coefficients[:3] > 0.3).all()


def test_a_site_carries_exactly_the_stated_risk():
    process = Process(site_risk=0.4)
    share, offsets = process.site_shares(), process.site_offsets()
    assert share @ offsets == pytest.approx(0, abs=1e-12)
    assert np.sqrt(share @ offsets**2) == pytest.approx(0.4)
    made = simulate(N, seed=2, process=process, modalities=())
    fit = fit_cox(covariates(made.latents), made.survival)
    z = (fit.coefficients[-3:] - (offsets[1:] - offsets[0])) / fit.standard_errors[-3:]
    assert np.abs(z).max() < 3.5


def test_kaplan_meier_of_a_large_cohort_is_the_population_curve(large):
    curve = kaplan_meier(large.survival.time, large.survival.event)
    true = synthetic.population_curve(large.process, TIMES)
    assert np.abs(curve(TIMES) - true).max() < 0.015


def test_true_curves_are_calibrated_patient_by_patient(large):
    """The cumulative hazard at the end of follow-up has the expectation of the event (martingale residuals)."""
    eta = synthetic.log_hazard(large.process, large.latents)
    expected = large.process.cumulative_hazard(large.survival.time) * np.exp(eta)
    residual = large.survival.event - expected
    for x in covariates(large.latents).T:
        assert abs(residual @ x) / np.sqrt(expected @ x**2) < 4
    assert abs(residual.sum()) / np.sqrt(expected.sum()) < 4


@pytest.mark.parametrize("censored", [0.35, 0.6, 0.9])
def test_as_many_are_censored_as_asked(censored):
    made = simulate(N, seed=5, censored=censored, modalities=())
    assert 1 - made.survival.event.mean() == pytest.approx(censored, abs=4 * np.sqrt(0.25 / N))
    assert made.survival.time.max() <= 1826


def test_a_share_of_censored_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="follow patients longer"):
        simulate(10, censored=0.01)
    with pytest.raises(ConfigError, match=r"0\.99"):
        simulate(10, censored=1.0)


def test_drop_out_is_independent_of_risk(large):
    left = Survival(event=~large.survival.event & (large.survival.time < 1826), time=large.survival.time)
    fit = fit_cox(covariates(large.latents)[:, :4], left)
    assert np.abs(fit.coefficients / fit.standard_errors).max() < 3.5


def test_what_a_process_cannot_be_is_refused():
    for wrong in ({"shape": 0.0}, {"size": np.nan}, {"sites": 0}, {"sites": 1, "site_risk": 0.1}, {"batch": -1.0}):
        with pytest.raises(ConfigError):
            Process(**wrong)
    with pytest.raises(ConfigError, match="n >= 1"):
        simulate(0)
    with pytest.raises(ConfigError, match='did you mean "imaging"'):
        simulate(5, modalities=("imagin",))


# --- the tables -----------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_cohorts_and_each_part_has_its_own_stream():
    first, again = simulate(60, seed=3), simulate(60, seed=3)
    thinned = simulate(60, seed=3, missing=Missing(mechanism="mnar"), censored=0.5, modalities=("ecg", "expression"))
    other = simulate(60, seed=4)
    for name in MODALITIES:
        assert np.array_equal(table(first, name), table(again, name))
        assert not np.array_equal(table(first, name), table(other, name))
    for field in dataclasses.fields(first.latents):
        assert np.array_equal(getattr(first.latents, field.name), getattr(thinned.latents, field.name))
    assert np.array_equal(first.survival.time, again.survival.time)
    assert set(thinned.data) == {"ecg", "expression"}
    for name in thinned.data:
        for patient, sample in thinned.data[name].samples.items():
            assert np.array_equal(sample.tokens, first.data[name].samples[patient].tokens)


def test_every_modality_shows_its_latent_without_error():
    made = simulate(300, seed=1)
    shown = {
        "imaging": table(made, "imaging")[:, 0],
        "reports": table(made, "reports")[:, 0],
        "pathology": table(made, "pathology")[:, 0],
        "ecg": table(made, "ecg")[:, 0],
        "ehr": table(made, "ehr")[:, 0],
        "expression": synthetic.pathway_score(table(made, "expression")),
    }
    for name, values in shown.items():
        true = made.latents.measured(synthetic.SHOWS[name])
        assert np.corrcoef(values, true)[0, 1] > 1 - 1e-10, name
        assert np.abs(values - values.mean() - (true - true.mean())).max() < 1e-3 * np.abs(true).max(), name


def test_sites_move_what_carries_no_signal_and_nothing_that_does(large):
    site, eta = large.latents.site, synthetic.log_hazard(large.process, large.latents)

    def explained(x):
        means = np.array([x[site == k].mean() for k in range(4)])
        return ((means[site] - x.mean()) ** 2).mean() / x.var()

    for name in ("imaging", "pathology", "ecg"):
        values = table(large, name)
        assert explained(values[:, 0]) < 0.001
        assert all(explained(values[:, j]) > 0.02 for j in (1, 2, 3))
        assert all(abs(correlation_z(values[:, j], eta)) < 4 for j in range(1, values.shape[1]))
    quiet = simulate(2000, seed=8, process=Process(batch=0.0), modalities=("imaging",))
    site = quiet.latents.site
    assert all(explained(column) < 0.01 for column in table(quiet, "imaging").T)


def test_genes_of_a_pathway_move_together_and_mutations_follow_their_burden():
    made = simulate(2000, seed=6, process=Process(batch=0.0), modalities=("expression", "mutations"))
    genes = np.corrcoef(table(made, "expression").T)
    inside, between = genes[:20, :20][np.triu_indices(20, 1)], genes[:20, 20:40]
    assert inside.min() > 0.4
    assert np.abs(between).max() < 0.2
    mutated = table(made, "mutations")
    assert set(np.unique(mutated)) == {0.0, 1.0}
    assert correlation_z(mutated.sum(1), made.latents.burden) > 10
    assert all(len(genes) == 20 for genes in synthetic.GENE_SETS.values())


# --- missingness ----------------------------------------------------------------------------------------------------


def logistic(absent, x):
    """Coefficients and standard errors of a logistic regression with intercept, by maximum likelihood."""
    design = np.column_stack([np.ones(len(x)), x])

    def loss(beta):
        eta = design @ beta
        p = 1 / (1 + np.exp(-eta))
        return np.logaddexp(0, eta).sum() - eta[absent].sum(), design.T @ (p - absent)

    beta = minimize(loss, np.zeros(design.shape[1]), jac=True, tol=1e-10).x
    p = 1 / (1 + np.exp(-design @ beta))
    return beta, np.sqrt(np.diag(np.linalg.inv(design.T @ (design * (p * (1 - p))[:, None]))))


@pytest.mark.parametrize("mechanism", ["mcar", "mar", "mnar"])
def test_absence_depends_on_what_its_name_says_and_on_nothing_else(mechanism):
    made = simulate(N, seed=9, missing=Missing(mechanism=mechanism, rate=0.3, strength=1.5), modalities=())
    names = synthetic.LATENTS
    x = np.stack([getattr(made.latents, name) for name in names], axis=1)
    for m, name in enumerate(MODALITIES):
        absent = ~made.present[:, m]
        if mechanism == "mar" and name == "ehr":
            assert not absent.any()
            continue
        assert absent.mean() == pytest.approx(0.3, abs=0.015)
        driver = {"mcar": None, "mar": "slope", "mnar": synthetic.SHOWS[name]}[mechanism]
        stated = np.array([1.5 if latent == driver else 0.0 for latent in names])
        beta, error = logistic(absent, x)
        assert np.abs((beta[1:] - stated) / error[1:]).max() < 4, (mechanism, name)


def test_mcar_leaves_the_observed_as_they_were_and_mnar_does_not():
    for mechanism, biased in (("mcar", False), ("mnar", True)):
        made = simulate(N, seed=10, missing=Missing(mechanism=mechanism, rate=0.4), modalities=())
        seen = made.latents.size[made.present[:, 0]]
        z = seen.mean() * np.sqrt(len(seen))
        assert (z < -10) if biased else (abs(z) < 4)
    flipped = simulate(N, seed=10, missing=Missing(mechanism="mnar", rate=0.4, strength=-1.5), modalities=())
    assert flipped.latents.size[flipped.present[:, 0]].mean() > 0.2


def test_rates_by_modality_and_what_cannot_be():
    made = simulate(2000, seed=1, missing=Missing(mechanism="mcar", rate={"ecg": 0.5}), modalities=())
    assert made.present.mean(0)[MODALITIES.index("ecg")] == pytest.approx(0.5, abs=0.05)
    assert made.present[:, [i for i, name in enumerate(MODALITIES) if name != "ecg"]].all()
    for wrong in ({"rate": 1.2}, {"rate": {"eeg": 0.2}}, {"mechanism": "maybe"}, {"strength": np.inf}):
        with pytest.raises(ConfigError):
            Missing(**{"mechanism": "mcar", **wrong})
    with pytest.raises(ConfigError, match="everybody has ehr"):
        Missing(mechanism="mar", rate={"ehr": 0.1})


# --- the oracle -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told():
    made = simulate(400, seed=21, missing=Missing(mechanism="mcar", rate=0.25), modalities=())
    return made, synthetic.truth(made.process, made.latents, TIMES, present=made.present)


def test_contributions_sum_to_what_all_modalities_change(told):
    made, truth = told
    total = np.nansum(truth.contributions, axis=1)
    assert np.abs(total - (truth.everybody - truth.nobody)).max() < 1e-12
    assert np.abs(np.nansum(truth.dividends, axis=1) - truth.everybody).max() < 1e-12
    assert np.array_equal(np.isnan(truth.contributions[:, :, 0]), ~made.present)


def test_the_inert_modality_gets_exactly_nothing(told):
    _, truth = told
    inert = truth.contributions[:, MODALITIES.index(synthetic.INERT)]
    assert np.nanmax(np.abs(inert)) == 0.0


def test_the_redundant_pair_gets_equal_shares_and_a_dividend_that_takes_one_back(told):
    made, truth = told
    first, second = (MODALITIES.index(name) for name in synthetic.REDUNDANT)
    both = made.present[:, first] & made.present[:, second]
    assert np.abs(truth.contributions[both, first] - truth.contributions[both, second]).max() < 1e-12
    alone, together = truth.dividend("imaging")[both], truth.dividend("imaging", "reports")[both]
    assert np.abs(alone + together).max() < 1e-12
    assert np.abs(alone).mean() > 0.2


def test_the_pair_says_nothing_alone_and_something_together(told):
    made, truth = told
    has = made.present[:, [MODALITIES.index(name) for name in synthetic.PAIR]].all(axis=1)
    for name in synthetic.PAIR:
        assert np.nanmax(np.abs(truth.dividend(name))) == 0.0
    assert np.nanmax(np.abs(truth.dividend("pathology", "ehr"))) == 0.0
    side = made.latents.same_side()[has]
    assert (np.sign(truth.dividend(*synthetic.PAIR)[has]) == side[:, None]).all()
    assert np.abs(truth.dividend(*synthetic.PAIR)[has]).min() > 0.5


def test_with_everything_known_the_value_is_the_log_hazard(large):
    some = large.latents.take(np.arange(200))
    v = synthetic.values(large.process, some, TIMES)
    expected = synthetic.log_hazard(large.process, some)[:, None] + np.log(large.process.cumulative_hazard(TIMES))
    assert np.abs(v - expected).max() < 1e-9
    curves = synthetic.survival(large.process, some, TIMES)
    assert ((curves >= 0) & (curves <= 1)).all()
    assert (np.diff(curves, axis=1) <= 0).all()


SUBSETS = [(), ("imaging",), ("reports", "ecg"), ("pathology",), ("pathology", "expression"), ("ehr", "mutations")]


@pytest.mark.parametrize("known", SUBSETS, ids="+".join)
def test_expected_curves_agree_with_drawing_whole_patients_anew(known):
    process = Process(site_risk=0.3)
    some = simulate(6, seed=30, process=process, modalities=()).latents
    estimate = synthetic.monte_carlo(process, some, TIMES, known=known, draws=40_000, seed=31)
    exact = synthetic.survival(process, some, TIMES, known=known)
    # The site is known whatever else is; one draw serves all patients, so the errors are as one.
    assert np.abs((exact - estimate.value) / np.maximum(estimate.standard_error, 1e-12)).max() < 4.5
    assert estimate.standard_error.max() < 0.003


def test_expected_curves_agree_with_adaptive_quadrature():
    process, some = Process(), simulate(3, seed=30, modalities=()).latents
    spread = np.hypot(0.5, 0.5)  # ST and slope unknown, beside the pair
    for i in range(3):
        for t in TIMES:

            def integrand(z, i=i, t=t):
                density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
                h = process.cumulative_hazard(t) * np.exp(0.7 * some.size[i] + spread * z)
                return density * (np.exp(-h * np.exp(0.8)) + np.exp(-h * np.exp(-0.8))) / 2

            expected = quad(integrand, -12, 12, epsabs=1e-13, epsrel=1e-12, limit=200)[0]
            found = synthetic.survival(process, some.take(np.array([i])), [t], known=("imaging",))[0, 0]
            assert found == pytest.approx(expected, abs=1e-9)


def test_the_quadrature_is_exact_over_nine_decades_of_hazard():
    assert synthetic.quadrature_error(Process(), [0.1, 1.0, 30.0, 365.0, 1826.0, 3650.0]) < 1e-7
    assert synthetic.quadrature_error(Process(), TIMES) < 1e-8


def test_who_does_not_exist_or_when_is_refused(large):
    some = large.latents.take(np.arange(3))
    for times in ([0.0], [], [np.nan], [[1.0]]):
        with pytest.raises(ConfigError, match="times"):
            synthetic.values(large.process, some, times)
    with pytest.raises(ConfigError, match="no modality 'ct'"):
        synthetic.values(large.process, some, [1.0], known=("ct",))
    with pytest.raises(ConfigError, match="present"):
        synthetic.truth(large.process, some, [1.0], present=np.ones((3, 2), dtype=bool))


# --- the best C -----------------------------------------------------------------------------------------------------


def test_the_best_c_is_the_closed_form_where_there_is_one():
    """Without censoring, P(concordant | two log hazards) = 1 / (1 + exp(-|difference|)) under proportional hazards."""
    found = synthetic.best_c(Process(), seed=3, censored=0.01, follow_up=1e6)
    eta = synthetic.log_hazard(Process(), simulate(200_000, seed=4, modalities=()).latents)
    chance = 1 / (1 + np.exp(-np.abs(eta[::2] - eta[1::2])))
    error = np.hypot(found.standard_error, chance.std() / np.sqrt(len(chance)))
    assert abs(found.value - chance.mean()) < 4 * error


def test_the_best_c_of_what_says_nothing_is_a_coin():
    for known in ((), ("mutations",), ("pathology",), ("expression",)):
        assert synthetic.best_c(Process(), known=known, n=2000).value == 0.5
    one, both = (synthetic.best_c(Process(), known=k, n=4000).value for k in (("imaging",), ("imaging", "reports")))
    assert one == both
    assert synthetic.best_c(Process(), known=synthetic.PAIR, n=4000).value > 0.6


def test_no_fitted_model_passes_the_oracle(large):
    train, held_out = np.arange(4000), np.arange(4000, N)
    outcome, x = large.survival, covariates(large.latents)
    best = harrell_c(outcome.take(held_out), synthetic.log_hazard(large.process, large.latents)[held_out])
    tables = np.concatenate([table(large, n) for n in ("imaging", "pathology", "ecg", "ehr", "mutations")], axis=1)
    tables = (tables - tables[train].mean(0)) / tables[train].std(0)
    linear = fit_cox(tables[train], outcome.take(train), penalty=1.0)
    right = fit_cox(x[train], outcome.take(train))
    c_linear = harrell_c(outcome.take(held_out), tables[held_out] @ linear.coefficients).value
    c_right = harrell_c(outcome.take(held_out), x[held_out] @ right.coefficients).value
    assert c_linear < best.value - 0.03  # it cannot see the pair
    assert best.value - 0.005 < c_right <= best.value + best.standard_error / 10


def test_the_best_score_with_absent_modalities_beats_ignoring_who_has_what():
    made = simulate(N, seed=14, missing=Missing(mechanism="mcar", rate=0.4), modalities=())
    score = synthetic.best_score(made.process, made.latents, made.present)
    oracle = harrell_c(made.survival, score)
    full = harrell_c(made.survival, synthetic.log_hazard(made.process, made.latents))
    size_only = harrell_c(made.survival, np.where(made.present[:, 0], made.latents.size, 0.0))
    assert size_only.value + 0.03 < oracle.value < full.value - 0.02
    complete = made.present.all(axis=1)
    known = synthetic.log_hazard(made.process, made.latents)[complete]
    assert np.array_equal(np.argsort(score[complete]), np.argsort(known))


# --- as files -------------------------------------------------------------------------------------------------------


def test_tables_and_card_read_back_as_simulated(tmp_path):
    made = simulate(80, seed=5, missing=Missing(mechanism="mar", rate=0.3))
    path = synthetic.write_tables(tmp_path / "cohort", made)
    card = read_card(path)
    cohort = read_cohort(card, data_root=tmp_path / "cohort")
    assert cohort.patient_ids == made.patient_ids
    assert [record.site for record in cohort.records] == list(made.site)
    assert np.array_equal(cohort.targets["death"].event, made.survival.event)
    assert np.abs(cohort.targets["death"].time - made.survival.time).max() <= 0.01
    data = load_modalities(cohort, store_root=tmp_path / "store")
    assert list(data) == list(MODALITIES)
    for name, modality in data.items():
        assert modality.columns == made.data[name].columns
        assert set(modality.samples) == set(made.data[name].samples)
        for patient, sample in modality.samples.items():
            assert np.array_equal(sample.tokens, made.data[name].samples[patient].tokens)
    assert set(card.sources()) == set(card.governance.sha256)


def test_the_truth_is_beside_the_inputs_and_never_among_them(tmp_path):
    made = simulate(40, seed=5, process=Process(size=0.61, together=0.77), missing=Missing(mechanism="mnar"))
    path = synthetic.write_tables(tmp_path, made)
    sources = read_card(path).sources()
    assert not [source for source in sources if "truth" in source]
    secret = [f"{value:.9g}" for value in synthetic.log_hazard(made.process, made.latents)]
    for source in [*sources, "card.md"]:
        text = (tmp_path / source).read_text()
        assert "hazard" not in text
        assert not [value for value in secret if value in text]
    assert "0.61" not in (tmp_path / "card.md").read_text().split("---\n")[-1]
    told = (tmp_path / "truth" / "truth.md").read_text()
    assert "+0.61 per standard deviation of the diameter" in " ".join(told.split())
    assert "+0.77 if nuclei per mm2" in " ".join(told.split())
    assert "Inert: mutations" in told
    assert sorted(p.name for p in (tmp_path / "truth").iterdir()) == [
        "contributions.csv",
        "latents.csv",
        "process.json",
        "truth.md",
    ]
    assert "log odds +1.5 per SD of what the modality would have shown" in truth_text(made)
