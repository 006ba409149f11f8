"""Summaries of an electronic record as they would be without some of its events, by the pipeline of the whole."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError
from medfuse.loaders._event_groups import aggregate
from medfuse.loaders._event_options import Options, parse
from medfuse.loaders._event_query import connection
from medfuse.loaders.events import OTHER, event_name, seen_events, summary
from medfuse.sample import ModalitySample
from medfuse.types import PatientId

_COLUMNS: tuple[str, ...] = ("age", "v")
_ROWS = 4_000_000  # events of copies that are summarised together


@dataclass(frozen=True, kw_only=True)
class PatientEvents:
    """What the model may see of one patient, in the order of :func:`medfuse.loaders.events.events_of`.

    An event whose code stands in two variables of the card is an event of each.

    Attributes:
        options: of the card.
        variable: (n,) number of the variable, then of the bucket.
        days: (n,) before the index time; NaN: without a time.
        columns: (n,) each: ``age`` in microseconds, ``v``, and ``side`` where the card has ranges.
    """

    options: Options
    variable: NDArray[np.int64]
    days: NDArray[np.float64]
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.variable)

    @property
    def names(self) -> tuple[str, ...]:
        """(n,) ``creatinine, 12.3 days before``: no value of the patient, which stays in its file."""
        known = [v.name for v in self.options.variables] + [OTHER] * self.options.buckets
        return tuple(event_name(known[k], day) for k, day in zip(self.variable, self.days, strict=True))

    def summaries(self, kept: NDArray[np.bool_]) -> list[ModalitySample | None]:
        """The stored sample of each copy of the patient that has only some of the events.

        Args:
            kept: (k, n) which events each copy has.

        Returns:
            k samples in the columns of :func:`medfuse.loaders.events.read`; None of a copy without any event, who does
            not have the modality.
        """
        step = max(1, _ROWS // max(1, len(self)))
        parts = [self._summaries(kept[at : at + step]) for at in range(0, len(kept), step)]
        return [one for part in parts for one in part]

    def _summaries(self, kept: NDArray[np.bool_]) -> list[ModalitySample | None]:
        copy, event = np.nonzero(kept)
        if not len(copy):
            return [None] * len(kept)
        columns = {"sid": copy.astype(np.int64), "var": self.variable[event].astype(np.int32)}
        columns |= {name: part[event] for name, part in self.columns.items()}
        options = replace(self.options, patient_id="{}")
        with connection("events of copies of a patient") as (con, _):
            con.register("copies", pa.table({k: pa.array(v, from_pandas=True) for k, v in columns.items()}))
            con.execute("CREATE VIEW summed AS SELECT * FROM copies")
            samples, _ = summary(aggregate(con, options), options)
        return [samples.get(PatientId(str(k))) for k in range(len(kept))]


def patient_events(
    card: ModalityCard, patients: Sequence[str], *, resolve: Callable[[str], Path], id_column: str | None
) -> dict[str, PatientEvents]:
    """Events of some patients, of whose summaries copies can be made; nobody without any.

    Raises:
        ConfigError: the card asks for tokens, of which each is an event already.
        DataError: as :func:`medfuse.loaders.events.read`.
    """
    options = parse(card.options)
    if options.output != "summary":
        msg = "events: expected output: summary in the card, found tokens, which are single events already; "
        raise ConfigError(msg + "ask for units instance")
    found = {}
    for patient, own in seen_events(card, patients, resolve=resolve, id_column=id_column).items():
        columns = {name: own[name] for name in (*_COLUMNS, "side") if name in own}
        variable, days = own["var"].astype(np.int64), own["days"].astype(np.float64)
        found[patient] = PatientEvents(options=options, variable=variable, days=days, columns=columns)
    return found
