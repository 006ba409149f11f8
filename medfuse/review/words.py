"""Words that stand on every page and in every export, and how numbers are written."""

import math

from medfuse.pages import BANNER as BANNER

MEANING = {
    "recalibrated": (
        "Contributions are recalibrated, as every prediction from part of the modalities is: what these say alone was "
        "moved to what it means for training patients."
    ),
    "as the model says": "Contributions are those that the model says; subsets of modalities were not recalibrated.",
}
NOT_EXPLAINED = "not computed: this run has not been explained; run medfuse explain on it"


def percent(value: float) -> str:
    """A probability as per cent with one decimal, as everywhere in the review and in the command line."""
    return "undefined" if not math.isfinite(value) else f"{value:.1%}".replace("%", " %")


def risk_text(value: float, low: float, high: float) -> str:
    """A risk with its interval; there is no function that writes a risk without one."""
    return f"{percent(value)} [{percent(low).removesuffix(' %')} to {percent(high).removesuffix(' %')}]"


def days_text(days: float) -> str:
    """Days, with years from two years on."""
    return f"{days:.0f} days" if days < 730 else f"{days:.0f} days ({days / 365.25:.1f} years)"


def signed(value: float, digits: int = 3) -> str:
    """A signed number."""
    return f"{value:+.{digits}f}"
