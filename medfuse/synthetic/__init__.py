"""A synthetic cohort with a known generating process and its oracle, for tests, demonstrations and teaching.

``simulate(n)`` gives tables for thousands of patients; ``truth`` the contributions that a perfect explanation would
find, ``survival`` the true curves and ``best_c`` the C-index that no model can pass.
"""

from medfuse.synthetic.cohort import GENE_SETS, GENES, Simulation, pathway_score, simulate
from medfuse.synthetic.curves import median_survival, monte_carlo, population_curve, quadrature_error, survival, values
from medfuse.synthetic.oracle import Truth, best_c, best_score, members, truth
from medfuse.synthetic.outcomes import Missing, censored_share
from medfuse.synthetic.paper import write_tables, write_truth
from medfuse.synthetic.process import (
    INERT,
    LATENTS,
    MODALITIES,
    PAIR,
    REDUNDANT,
    SHOWS,
    Latents,
    Process,
    knowledge,
    log_hazard,
)

__all__ = [
    "GENES",
    "GENE_SETS",
    "INERT",
    "LATENTS",
    "MODALITIES",
    "PAIR",
    "REDUNDANT",
    "SHOWS",
    "Latents",
    "Missing",
    "Process",
    "Simulation",
    "Truth",
    "best_c",
    "best_score",
    "censored_share",
    "knowledge",
    "log_hazard",
    "median_survival",
    "members",
    "monte_carlo",
    "pathway_score",
    "population_curve",
    "quadrature_error",
    "simulate",
    "survival",
    "truth",
    "values",
    "write_tables",
    "write_truth",
]
