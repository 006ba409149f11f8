"""The errors that medfuse raises on bad input.

Every message says what was expected, what was found, where (file, row, patient id) and what to do; it never holds a
patient's values. Context found further out is added with ``add_note``, so that the original traceback survives.
"""

import difflib
from collections.abc import Iterable


class MedfuseError(Exception):
    """Anything that medfuse refuses; the command line prints its message and exits with 2."""


class ConfigError(MedfuseError):
    """A recipe, card or option that cannot be used as written."""


class CohortError(MedfuseError):
    """Patients, outcomes or splits that contradict each other or the card."""


class DataError(MedfuseError):
    """A source file that is missing, damaged or not what its card says."""


class StoreError(MedfuseError):
    """A feature store or run directory entry that is damaged or of another version."""


class ModelError(MedfuseError):
    """A model that cannot be built, fitted or applied as asked."""


class LeakError(CohortError):
    """Held-out information reaches the fit; the evidence is in the message."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which names are known and which of them is spelled most like ``word``.

    Returns:
        A clause for an error message, such as ``did you mean "late"? Known: concat, late``.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f"{hint}Known: {', '.join(names)}"
