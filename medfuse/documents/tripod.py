"""TRIPOD+AI: the items of the reporting guideline, in our own words.

Reference: Collins, Moons, Dhiman et al. (2024), TRIPOD+AI statement: updated guidance for reporting clinical prediction
models that use regression or machine learning methods, BMJ 385:e078378: 27 items, 52 with their parts. ``D`` is for
studies that develop a model, ``E`` for those that evaluate one.
"""

from dataclasses import dataclass

REFERENCE = "Collins GS, Moons KGM, Dhiman P, et al. TRIPOD+AI statement. BMJ 2024;385:e078378."


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item or part of an item.

    Attributes:
        number: such as 12c.
        section: of a paper.
        topic: in a few words.
        applies: D, E or D;E.
        asks: what it asks for, in our own words.
    """

    number: str
    section: str
    topic: str
    applies: str
    asks: str


def _items(section: str, *rows: tuple[str, str, str, str]) -> tuple[Item, ...]:
    return tuple(
        Item(number=number, section=section, topic=topic, applies=applies, asks=asks)
        for number, topic, applies, asks in rows
    )


ITEMS: tuple[Item, ...] = (
    *_items(
        "Title and abstract",
        (
            "1",
            "Title",
            "D;E",
            "Say that a prediction model is developed or evaluated, for whom and of what.",
        ),
        ("2", "Abstract", "D;E", "A structured abstract after TRIPOD+AI for Abstracts."),
    ),
    *_items(
        "Introduction",
        ("3a", "Context", "D;E", "Clinical setting, diagnosis or prognosis, why this model, which models exist."),
        ("3b", "Purpose", "D;E", "For which patients, at which point of care, and for which users it is meant."),
        ("3c", "Inequalities", "D;E", "Inequalities in health that are known between social or demographic groups."),
        ("4", "Objectives", "D;E", "Aims, and whether a model is developed, evaluated or both."),
    ),
    *_items(
        "Methods",
        ("5a", "Data", "D;E", "Where development and evaluation data come from, why these, and whom they represent."),
        ("5b", "Data", "D;E", "Dates: first and last patient entered, end of follow-up."),
        ("6a", "Participants", "D;E", "Kind of care, number and place of centres."),
        ("6b", "Participants", "D;E", "Who could take part and who could not."),
        ("6c", "Participants", "D;E", "Treatments received and how the analysis deals with them."),
        ("7", "Data preparation", "D;E", "Cleaning and quality checks, and whether they were alike across groups."),
        (
            "8a",
            "Outcome",
            "D;E",
            "Outcome and horizon: how and when determined, why it, alike across groups?",
        ),
        ("8b", "Outcome", "D;E", "Who judged an outcome that needs judgement: training and characteristics."),
        ("8c", "Outcome", "D;E", "Whether those who determined the outcome were blinded."),
        (
            "9a",
            "Predictors",
            "D",
            "How candidates were chosen, and any selection before the model was built.",
        ),
        ("9b", "Predictors", "D;E", "Every predictor: definition, how and when measured, blinding."),
        ("9c", "Predictors", "D;E", "Who judged predictors that need judgement: training and characteristics."),
        ("10", "Sample size", "D;E", "How the size came about and why it is enough, with any calculation."),
        ("11", "Missing data", "D;E", "How missing data were handled; why any data were left out."),
        ("12a", "Analysis", "D", "How data were divided between development and evaluation."),
        ("12b", "Analysis", "D", "How predictors entered: form, scaling, transformation."),
        ("12c", "Analysis", "D", "Kind of model and why, all building steps, tuning, internal validation."),
        ("12d", "Analysis", "D;E", "How differences between clusters such as hospitals were handled and measured."),
        ("12e", "Analysis", "D;E", "Measures and plots of performance, why these, and how models were compared."),
        ("12f", "Analysis", "E", "Any updating of the model, such as recalibration, overall or for groups."),
        ("12g", "Analysis", "E", "How predictions were computed: formula, code, object, interface."),
        ("13", "Class imbalance", "D;E", "Methods against imbalance, why, and recalibration after them."),
        ("14", "Fairness", "D;E", "Approaches to fairness, and why these."),
        (
            "15",
            "Model output",
            "D",
            "What the model puts out; thresholds of a classification and their origin.",
        ),
        (
            "16",
            "Training and evaluation",
            "D;E",
            "How both data sets differ: setting, eligibility, outcome, predictors.",
        ),
        ("17", "Ethics", "D;E", "Who approved the study; consent, or its waiver."),
    ),
    *_items(
        "Open science",
        ("18a", "Funding", "D;E", "Who paid, and what part they had in the study."),
        ("18b", "Interests", "D;E", "Conflicts of interest and financial disclosures of all authors."),
        ("18c", "Protocol", "D;E", "Where the protocol is, or that there is none."),
        ("18d", "Registration", "D;E", "Register and number, or that the study was not registered."),
        ("18e", "Data sharing", "D;E", "Whether and how the data can be had."),
        ("18f", "Code sharing", "D;E", "Whether and how the code of the analysis can be had."),
    ),
    *_items(
        "Patients and public",
        (
            "19",
            "Involvement",
            "D;E",
            "What patients and public had to do with design, conduct or reporting; or nothing.",
        ),
    ),
    *_items(
        "Results",
        ("20a", "Participants", "D;E", "Flow of patients, with and without the outcome, and follow-up."),
        (
            "20b",
            "Participants",
            "D;E",
            "Characteristics, also by source: dates, predictors, events, missing data.",
        ),
        ("20c", "Participants", "E", "Evaluation data beside development data: predictors and outcome."),
        ("21", "Model development", "D;E", "Patients and events in each analysis: fitting, tuning, evaluation."),
        ("22", "Model specification", "D", "The whole model so that others can predict with it, and limits of access."),
        ("23a", "Performance", "D;E", "Performance with intervals, also in key subgroups."),
        ("23b", "Performance", "D;E", "Differences in performance between clusters, if looked at."),
        ("24", "Model updating", "E", "Results of any updating: the new model and its performance."),
    ),
    *_items(
        "Discussion",
        (
            "25",
            "Interpretation",
            "D;E",
            "What results mean, fairness included, beside the aims and earlier studies.",
        ),
        (
            "26",
            "Limitations",
            "D;E",
            "Limits, as of sample, overfitting, missing data, and what they do to results.",
        ),
        ("27a", "Use", "D", "How poor or missing inputs are recognised and handled in use."),
        ("27b", "Use", "D", "What users have to do with inputs or model, and what they must know."),
        ("27c", "Use", "D;E", "Next steps of research, with a view to where the model applies."),
    ),
)
