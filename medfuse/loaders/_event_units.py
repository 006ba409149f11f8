"""Units of laboratory values and vital signs: spelling variants and conversions, listed one by one; nothing is guessed.

A spelling that is not in ``SPELLINGS`` is itself and nothing else: letter case carries meaning in UCUM (``G/L`` counts
leukocytes, ``g/L`` weighs protein), so text is never folded. Mass and amount of substance are exchanged by the molar
mass of the analyte that the card names, and only then.
"""

import re

# canonical UCUM -> other spellings in laboratory systems, MIMIC, OMOP and MEDS sources
SPELLINGS: dict[str, tuple[str, ...]] = {
    "mg/dL": ("mg/dl", "MG/DL", "mg/DL", "mg / dL", "milligram per deciliter"),
    "g/dL": ("g/dl", "G/DL", "gm/dl", "gm/dL", "g%", "gram per deciliter"),
    "g/L": ("g/l", "gram per liter"),
    "mg/L": ("mg/l", "MG/L", "ug/mL", "ug/ml", "mcg/mL", "µg/mL", "milligram per liter"),
    "ug/dL": ("ug/dl", "mcg/dL", "mcg/dl", "µg/dL", "UG/DL"),
    "ug/L": ("ug/l", "mcg/L", "µg/L", "ng/mL", "ng/ml", "NG/ML", "nanogram per milliliter"),
    "ng/L": ("ng/l", "pg/mL", "pg/ml", "PG/ML", "picogram per milliliter"),
    "mmol/L": ("mmol/l", "MMOL/L", "mM", "mM/L", "millimole per liter"),
    "umol/L": ("umol/l", "µmol/L", "μmol/L", "mcmol/L", "UMOL/L", "micromole per liter"),
    "nmol/L": ("nmol/l", "NMOL/L"),
    "meq/L": ("mEq/L", "mEq/l", "meq/l", "MEQ/L", "milliequivalent per liter"),
    "U/L": ("u/l", "IU/L", "IU/l", "[iU]/L", "[U]/L", "unit per liter", "international unit per liter"),
    "10*3/uL": ("K/uL", "K/ul", "k/uL", "x10E3/uL", "10^3/uL", "10*9/L", "10^9/L", "10E9/L", "x10^9/L", "G/L"),
    "10*6/uL": ("M/uL", "m/uL", "10^6/uL", "10*12/L", "10^12/L", "10E12/L", "T/L", "x10E6/uL"),
    "/uL": ("#/uL", "cells/uL", "{cells}/uL", "#/CU MM", "/mm3", "cells/mm3"),
    "%": ("percent", "pct", "PERCENT"),
    "1": ("{ratio}", "ratio", "{fraction}", "fraction"),
    "mm[Hg]": ("mmHg", "mmhg", "mm Hg", "MMHG", "millimeter mercury column"),
    "kPa": ("kpa", "KPA"),
    "/min": (
        "bpm",
        "BPM",
        "beats/min",
        "breaths/min",
        "insp/min",
        "{beats}/min",
        "{counts}/min",
        "/minute",
        "per minute",
    ),
    "Cel": ("C", "°C", "degC", "deg C", "Deg. C", "degree Celsius"),
    "[degF]": ("F", "°F", "degF", "deg F", "Deg. F", "?F", "degree Fahrenheit"),
    "kg": ("Kg", "KG", "kilogram"),
    "g": ("gram", "gm"),
    "[lb_av]": ("lb", "lbs", "LBS", "pound"),
    "cm": ("CM", "centimeter"),
    "m": ("meter",),
    "[in_i]": ("in", "inch", "inches", "Inch"),
    "kg/m2": ("kg/m^2", "kg/m²"),
    "mL": ("ml", "ML", "cc", "milliliter"),
    "L": ("liter",),
    "s": ("sec", "seconds", "second"),
    "d": ("day", "days"),
    "h": ("hr", "hour", "hours"),
    "a": ("year", "years", "yr"),
}
_CANONICAL = {s: unit for unit, others in SPELLINGS.items() for s in (unit, *others)}

# target = factor * source + offset, whatever the analyte; the reverse is derived
_LINEAR: tuple[tuple[str, str, float, float], ...] = (
    ("g/dL", "g/L", 10.0, 0.0),
    ("mg/dL", "mg/L", 10.0, 0.0),
    ("g/dL", "mg/dL", 1000.0, 0.0),
    ("g/L", "mg/L", 1000.0, 0.0),
    ("g/L", "mg/dL", 100.0, 0.0),
    ("mg/L", "ug/L", 1000.0, 0.0),
    ("mg/dL", "ug/dL", 1000.0, 0.0),
    ("ug/dL", "ug/L", 10.0, 0.0),
    ("mg/L", "ug/dL", 100.0, 0.0),
    ("ug/L", "ng/L", 1000.0, 0.0),
    ("mmol/L", "umol/L", 1000.0, 0.0),
    ("umol/L", "nmol/L", 1000.0, 0.0),
    ("10*3/uL", "/uL", 1000.0, 0.0),
    ("10*6/uL", "10*3/uL", 1000.0, 0.0),
    ("1", "%", 100.0, 0.0),
    ("kPa", "mm[Hg]", 760.0 / 101.325, 0.0),
    ("Cel", "[degF]", 1.8, 32.0),
    ("kg", "g", 1000.0, 0.0),
    ("[lb_av]", "kg", 0.45359237, 0.0),
    ("m", "cm", 100.0, 0.0),
    ("[in_i]", "cm", 2.54, 0.0),
    ("L", "mL", 1000.0, 0.0),
    ("d", "h", 24.0, 0.0),
)

# analyte -> (molar mass in g/mol, charges per molecule); the mass that the measurement counts (urea as its nitrogen)
ANALYTES: dict[str, tuple[float, int]] = {
    "glucose": (180.156, 0),
    "creatinine": (113.118, 0),
    "urea": (60.056, 0),
    "urea nitrogen": (28.014, 0),  # two nitrogen atoms per molecule of urea
    "bilirubin": (584.66, 0),
    "cholesterol": (386.65, 0),
    "triglycerides": (885.4, 0),
    "uric acid": (168.11, 0),
    "lactate": (90.08, 0),  # as lactic acid
    "calcium": (40.078, 2),
    "magnesium": (24.305, 2),
    "phosphate": (30.974, 0),  # as phosphorus
    "sodium": (22.990, 1),
    "potassium": (39.098, 1),
    "chloride": (35.45, 1),
    "bicarbonate": (61.017, 1),
    "iron": (55.845, 0),
    "ammonia": (17.031, 0),
    "haemoglobin": (16114.5, 0),  # as the monomer
}
_MASS_IN_MG_PER_L = {"g/dL": 1e4, "g/L": 1e3, "mg/dL": 10.0, "mg/L": 1.0, "ug/dL": 0.01, "ug/L": 1e-3}
_AMOUNT_IN_MMOL_PER_L = {"mmol/L": 1.0, "umol/L": 1e-3, "nmol/L": 1e-6}


def canonical(unit: str) -> str:
    """The UCUM spelling of a unit; blanks at its ends do not count, and an unknown unit stays as it is."""
    text = re.sub(r"\s+", " ", unit).strip()
    return _CANONICAL.get(text, text)


def conversion(found: str, wanted: str, analyte: str | None = None) -> tuple[float, float] | None:
    """Factor and offset from one unit to another.

    Args:
        found: of the source, in any known spelling.
        wanted: of the card.
        analyte: of :data:`ANALYTES`, needed between mass and amount of substance.

    Returns:
        (factor, offset) so that wanted = factor * found + offset; None where the table knows no way.
    """
    source, target = canonical(found), canonical(wanted)
    if source == target:
        return 1.0, 0.0
    for a, b, factor, offset in _LINEAR:
        if (source, target) == (a, b):
            return factor, offset
        if (source, target) == (b, a):
            return 1.0 / factor, -offset / factor
    return _by_analyte(source, target, analyte)


def _by_analyte(source: str, target: str, analyte: str | None) -> tuple[float, float] | None:
    if analyte not in ANALYTES:
        return None
    mass, charges = ANALYTES[analyte]
    amount = dict(_AMOUNT_IN_MMOL_PER_L)
    if charges:
        amount["meq/L"] = 1.0 / charges
    per_l = {unit: value / mass for unit, value in _MASS_IN_MG_PER_L.items()} | amount  # all in mmol/L
    if source in per_l and target in per_l:
        return per_l[source] / per_l[target], 0.0
    return None


def spellings_into(wanted: str, analyte: str | None = None) -> dict[str, tuple[float, float]]:
    """Every spelling that the table can turn into ``wanted``, with factor and offset."""
    known = {*_CANONICAL, wanted}
    found = {unit: conversion(unit, wanted, analyte) for unit in known}
    return {unit: way for unit, way in found.items() if way is not None}
