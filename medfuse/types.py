"""Units and ids, so that the type checker tells days from months and a patient from a site."""

from typing import Literal, NewType

PatientId = NewType("PatientId", str)
Days = NewType("Days", float)

Layout = Literal["columns", "vectors"]
ColumnKind = Literal["numeric", "categorical", "ordinal"]
OutcomeKind = Literal["survival", "binary", "multiclass", "continuous"]
TimeUnit = Literal["days", "weeks", "months", "years"]

DAYS_PER_UNIT: dict[str, float] = {"days": 1.0, "weeks": 7.0, "months": 30.4375, "years": 365.25}
