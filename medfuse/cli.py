"""The command line: every command is a thin call of a public function, and loads what it needs when it runs."""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfuse.errors import ConfigError, MedfuseError

if TYPE_CHECKING:
    from medfuse.run import Run

# The launcher, not the library, decides for its process: no usage statistics leave this machine.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it says "Downloading" of local files

# What the user can mend and the program cannot: rights, a full or read-only disk, a name that is no folder.
_OUTSIDE = {errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}

_INTERRUPTED = 130

app = typer.Typer(
    name="medfuse",
    help="Clinical multimodal prediction with missing modalities: raw files to an honest, calibrated prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DataRoot = Annotated[Path | None, typer.Option(help="Folder of the cohorts' files; default: MEDFUSE_DATA.")]
Cohort = Annotated[str, typer.Option(help="Name of a data card, or a path to one.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override one recipe key, such as train.lr=1e-4; repeatable.")
]


def _say(text: str) -> None:
    print(text, flush=True)


@contextlib.contextmanager
def _bar() -> Iterator[tuple[Callable[[str], None], Callable[[float, str], None]]]:
    """Lines above a progress bar with the time left, on a terminal; lines alone elsewhere."""
    if not sys.stdout.isatty():
        yield _say, lambda part, what: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task("reading", total=1.0)

        def say(text: str) -> None:
            bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

        def watch(part: float, what: str) -> None:
            bar.update(task, completed=part, description=what)

        yield say, watch


@app.command()
def doctor() -> None:
    """Print versions, device and floors, and what to do about each problem."""
    from medfuse.doctor import diagnose

    checks = diagnose()
    width = max(len(check.name) for check in checks)
    for check in checks:
        _say(f"{'ok ' if check.ok else 'BAD'} {check.name:<{width}}  {check.found}")
        if check.remedy:
            _say(f"    {'':<{width}}  -> {check.remedy}")
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def check(
    card: Annotated[str, typer.Argument(help="Name of a data card, or a path to one.")],
    data_root: DataRoot = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse files that identify a person.")] = False,
) -> None:
    """Validate a card against its files: attrition, availability, events per fold, and every problem."""
    from medfuse.checking import check as check_card

    report = check_card(card, data_root=data_root, strict=strict)
    if json:
        import json as json_module

        _say(json_module.dumps(report.to_dict(), indent=2))
    else:
        from rich.console import Console

        from medfuse.checking import render

        Console().print(render(report))
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def inspect(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say of any file or folder which loader reads it, what it holds, and what is wrong with it."""
    from medfuse.inspection import inspect as look
    from medfuse.inspection import lines

    found = look(paths)
    if json:
        import json as json_module

        _say(json_module.dumps([one.to_dict() for one in found], indent=2))
    else:
        for line in lines(found):
            _say(line)
    raise typer.Exit(1 if any(one.refusal for one in found) else 0)


@app.command()
def extract(
    cohort: Cohort,
    modalities: Annotated[list[str] | None, typer.Option("--modality", help="Only this one; repeatable.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    data_root: DataRoot = None,
    store: Annotated[Path | None, typer.Option(help="Folder of the feature store.")] = None,
    rehash: Annotated[bool, typer.Option("--rehash", help="Read every source file again.")] = False,
) -> None:
    """Turn a cohort's raw files into stored features: resumable, one bad file never stops the rest."""
    from medfuse.cohort import read_cohort
    from medfuse.config import read_card
    from medfuse.dataset import default_store_root
    from medfuse.extraction import extract as run

    people = read_cohort(read_card(cohort), data_root=data_root, need_outcomes=False)
    root = store or default_store_root()
    report = run(people, names=modalities, store_root=root, workers=workers, rehash=rehash, say=_say)
    kept = sum(item.status == "kept" for item in report.items)
    stored = sum(item.status == "stored" for item in report.items)
    _say(f"{stored} stored, {kept} kept, {len(report.failed)} failed")
    if not report.items and not report.absent:
        _say("nothing to extract: these modalities are tables, which training reads and stores by itself")
    for name, count in report.absent.items():
        _say(f"{name}: {count} of {len(people.patient_ids)} patients have no file")
    for item in report.failed:
        _say(f"FAILED {item.modality}, patient {item.patient_id}: {item.reason}")
    raise typer.Exit(1 if report.failed else 0)


@app.command()
def train(
    cohort: Cohort,
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a path to one.")] = "default",
    set_: Set = None,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option(help="New run directory, or one to go on with; default: runs/COHORT-RECIPE-TIME.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random; default: the recipe's.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Folds fitted side by side; default: one per core, or one per GPU.")
    ] = None,
) -> None:
    """Train on the folds of a cohort, evaluate once on what was held out, and write a run directory with a report."""
    from medfuse.workflow import train as train_cohort

    with _bar() as (say, watch):
        run = train_cohort(
            cohort,
            recipe=recipe,
            overrides=set_ or (),
            data_root=data_root,
            out=out,
            seed=seed,
            workers=workers,
            say=say,
            watch=watch,
        )
    _finish(run)


@app.command()
def demo(
    patients: Annotated[int, typer.Option(min=60, help="Number of patients.")] = 200,
    out: Annotated[
        Path, typer.Option(help="New folder of cohort, feature store and run, or one to go on with.")
    ] = Path("runs/demo"),
    missing: Annotated[str, typer.Option(help="How modalities are absent: none, mcar, mar or mnar.")] = "mcar",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the cohort and of the training.")] = 0,
) -> None:
    """Write a synthetic cohort as raw files of seven modalities, train on it, and show the truth beside the result."""
    from medfuse.demo import demo as run_demo
    from medfuse.demo import missing_by

    with _bar() as (say, watch):
        done = run_demo(
            out, patients=patients, seed=seed, missing=missing_by(missing), workers=None, say=say, watch=watch
        )
    for line in done.lines:
        _say(line)
    _finish(done.run, places=f"MEDFUSE_DATA={out / 'cohort'} MEDFUSE_STORE={out / 'store'} ")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    cohort: Cohort,
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="New JSON file; default: external_COHORT.json.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Outcome; default: the run's first that the card has.")] = None,
) -> None:
    """External validation: apply a run to another cohort that has the same modalities and outcome."""
    from medfuse.workflow import evaluate as evaluate_run
    from medfuse.workflow import summary_lines

    evaluation, path = evaluate_run(run, cohort, outcome=outcome, data_root=data_root, out=out)
    for line in summary_lines(evaluation):
        _say(line)
    _say(f"written: {path}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run directory, or what merge wrote.")],
    cohort: Cohort,
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="New CSV file; default: predictions_COHORT.csv.")] = None,
) -> None:
    """Apply a run or a merged member to the patients of a card, who may miss modalities; outcomes are not needed."""
    from medfuse.workflow import predict as predict_cohort

    path = predict_cohort(run, cohort, data_root=data_root, out=out)
    _say(f"written: {path}")


@app.command()
def merge(
    members: Annotated[list[Path], typer.Argument(help="Folders of members, RUN/folds/FOLD/members/NAME.")],
    out: Annotated[Path, typer.Option(help="New folder of the merged member.")],
    weight: Annotated[list[float] | None, typer.Option(help="Per member, in order; default: tuning scores.")] = None,
) -> None:
    """Merge members of fusion lego that read different modalities into one, without training and without patients."""
    from medfuse.merging import merge_folders

    merged = merge_folders(members, out=out, weights=weight)
    shares = merged.state["fusion.share"].tolist()
    _say(", ".join(f"{name} {share:.3f}" for name, share in zip(merged.shapes, shares, strict=True)))
    _say(f"written: {out}")
    _say(f"next: {_command('medfuse')} predict {out} --cohort CARD   # ranks: nothing recalibrated it")


@app.command()
def benchmark(
    cohort: Cohort,
    models: Annotated[
        list[str] | None, typer.Option("--models", help="Fusions, recipes, ensemble; repeatable. Default: all fusions.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="Recipe whose budget all models share.")] = "default",
    set_: Set = None,
    trials: Annotated[int, typer.Option(help="Tuning trials per model and fold.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="New folder, or one to go on with; default: runs/benchmark-COHORT.")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Train many ways of fusing and the baselines under one budget, and say whether any fusion is worth it."""
    from medfuse.benchmarking import benchmark as run_benchmark

    found = run_benchmark(
        cohort,
        models=[name for text in models for name in text.split(",")] if models else None,
        recipe=recipe,
        overrides=set_ or (),
        trials=trials,
        data_root=data_root,
        out=out,
        say=_say,
    )
    for line in found.lines():
        _say(line)
    _say(f"written: {found.path / 'benchmark.json'}")


@app.command()
def stress(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    mechanism: Annotated[
        str, typer.Option(help="subsets, mcar, mar, mnar, mnar-flip, noise, dilution or swap.", show_default=False)
    ],
    rates: Annotated[list[float] | None, typer.Option("--rate", help="Such as 0.5; repeatable.")] = None,
    modalities: Annotated[list[str] | None, typer.Option("--modality", help="Only this one; repeatable.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results, new files; default: stress/ in the run.")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Hide, blur, dilute or swap modalities of a run's held-out patients, with its stored models."""
    from medfuse.stressing import stress_lines, stress_run

    with _bar() as (_, watch):
        result = stress_run(
            run,
            mechanism,
            rates=rates,
            modalities=modalities,
            out=out,
            data_root=data_root,
            watch=lambda part: watch(part, mechanism),
        )
    for line in stress_lines(result.content):
        _say(line)
    for path in result.paths:
        _say(f"written: {path}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    review: Annotated[Path | None, typer.Option(help="Reviews and audit log; default: RUN-review, if there.")] = None,
) -> None:
    """Write the run's self-contained HTML page again, with model card, TRIPOD+AI table and data-card checks."""
    from medfuse.documents import DOCUMENTS
    from medfuse.exporting import times_opened
    from medfuse.workflow import rewrite_report

    path = rewrite_report(run, opened=times_opened(run, review))
    for one in (path, *(path.with_name(f"{name}.html") for name in DOCUMENTS)):
        _say(f"written: {one}")


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    outcome: Annotated[str | None, typer.Option(help="Outcome; default: the run's first.")] = None,
    horizon: Annotated[float | None, typer.Option(help="Days; default: the middle reporting horizon.")] = None,
    patient: Annotated[str | None, typer.Option(help="One held-out patient instead of all.")] = None,
    within: Annotated[str | None, typer.Option(help="What the units of this modality added instead.")] = None,
    units: Annotated[
        str | None, typer.Option(help="column, gene_set, group, event, instance, identity, region or wave.")
    ] = None,
    patients: Annotated[list[str] | None, typer.Option(help="With --within: only these; repeat it.")] = None,
    label: Annotated[
        int | None, typer.Option(min=1, help="With --within: class of a multi-class outcome, from 1.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the explanation; stored with the run.")] = False,
    data_root: DataRoot = None,
) -> None:
    """What each modality contributed to each held-out prediction: computed once, stored in the run, then read."""
    from medfuse.explained import require_held_out
    from medfuse.explaining import check_run, default_horizon, explain_run, lines
    from medfuse.explaining_parts import patient_lines, read_parts
    from medfuse.prototypes import prototype_lines
    from medfuse.run import open_run

    opened = open_run(run)
    if within is not None:
        from medfuse.within import Ask, explain_within, within_lines

        only = [patient] if patient and not patients else patients
        number = None if label is None else label - 1
        ask = Ask(
            outcome=outcome, horizon=horizon, units=units, class_index=number, patients=tuple(only or ()), check=check
        )
        parts = explain_within(opened, within, ask=ask, data_root=data_root, say=_say)
        for line in within_lines(parts, patient=patient):
            _say(line)
        return
    if any((units, patients, label)):
        msg = "explain: --units, --patients and --label ask about one modality, found none named; add --within MODALITY"
        raise ConfigError(msg)
    require_held_out(opened, patient)
    found = explain_run(opened, outcome=outcome, data_root=data_root, say=_say)
    at = default_horizon(opened, found) if horizon is None else horizon
    for line in lines(found, horizon=at, patient=patient):
        _say(line)
    if patient is not None:
        for line in patient_lines(read_parts(opened, found[0].outcome), patient, horizon=at):
            _say(line)
    for line in prototype_lines(opened, found[0].outcome, patient=patient):
        _say(line)
    if check:
        checks = check_run(opened, outcome=outcome, data_root=data_root, say=_say)
        for one in checks:
            _say(one.line())
        raise typer.Exit(1 if any(one.passed is False for one in checks) else 0)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run directory, explained with medfuse explain.")],
    patient: Annotated[str, typer.Option(help="Key of a held-out patient.", show_default=False)],
    form: Annotated[str, typer.Option("--format", help="html, pdf, json or csv.")] = "pdf",
    out: Annotated[Path | None, typer.Option(help="New file; default: patient-report-HASH.FORMAT.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Outcome; default: the run's first.")] = None,
    horizon: Annotated[float | None, typer.Option(help="Days; default: the middle reporting horizon.")] = None,
    withheld: Annotated[bool, typer.Option("--withheld", help="Also a prediction that is withheld.")] = False,
) -> None:
    """Write the review of one patient as a document with hashes; medfuse verify checks it against the run."""
    from medfuse.exporting import export_patient

    path, digest = export_patient(run, patient, form=form, at=horizon, outcome=outcome, out=out, withheld=withheld)
    _say(f"written: {path}")
    _say(f"SHA-256: {digest}")


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    file: Annotated[Path, typer.Argument(help="A file of medfuse export, or of the review.")],
) -> None:
    """Say whether an exported file is whole, shows what its record says, and has the numbers of the run."""
    from medfuse.exporting import verify_export

    found = verify_export(run, file)
    for one in found:
        _say(one.line())
    raise typer.Exit(1 if any(one.ok is False for one in found) else 0)


@app.command(name="app")
def review(
    run: Annotated[Path, typer.Argument(help="Run directory, explained with medfuse explain.")],
    folder: Annotated[Path | None, typer.Option(help="Reviews, log and users; default: RUN-review.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Outcome; default: the run's first.")] = None,
    address: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine need users.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8501,
    reader_first: Annotated[bool, typer.Option(help="Predictions after the reader's own estimate.")] = True,
    threshold: Annotated[float, typer.Option(help="Risk above which one would act.")] = 0.5,
    data_root: DataRoot = None,
    store: Annotated[Path | None, typer.Option(help="Folder of the feature store.")] = None,
    add_user: Annotated[
        str | None, typer.Option(help="Add or replace this user, ask for a password, and stop.")
    ] = None,
    role: Annotated[list[str] | None, typer.Option(help="Role of the user: reader, investigator, steward.")] = None,
    oidc_role: Annotated[
        list[str] | None, typer.Option(help="GROUP=ROLE of a login server that Streamlit knows; repeatable.")
    ] = None,
    oidc_claim: Annotated[str, typer.Option(help="Claim that holds the groups.")] = "groups",
    oidc_secrets: Annotated[Path | None, typer.Option(help="TOML file whose section auth names it.")] = None,
    host: Annotated[list[str] | None, typer.Option(help="Name that browsers may use; repeatable.")] = None,
) -> None:
    """Start the clinical review in a browser: worklist, patients, evidence, missing data, performance, reviews."""
    from medfuse.review.access import Users
    from medfuse.review.launch import serve
    from medfuse.review.settings import ReviewSettings, beside, roles_of

    settings = ReviewSettings(
        run=str(run),
        folder=str(folder or beside(run)),
        outcome=outcome,
        address=address,
        reader_first=reader_first,
        threshold=threshold,
        data_root=str(data_root) if data_root else None,
        store=str(store) if store else None,
        oidc_roles=roles_of(oidc_role or ()),
        oidc_claim=oidc_claim,
        oidc_secrets=str(oidc_secrets) if oidc_secrets else None,
        hosts=tuple(host or ()),
    )
    if add_user is not None:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        Users(settings.users_file).add(add_user, password, frozenset(role or ("reader",)))
        _say(f"written: {settings.users_file}")
        return
    raise typer.Exit(serve(settings, port=port, say=_say))


def _command(name: str) -> str:
    """How a program of this environment is called here: by its name, or by its path where that is not on PATH."""
    if shutil.which(name):
        return name
    found = Path(sys.executable).with_name(name)
    here = Path.cwd()
    return str(found.relative_to(here) if found.is_relative_to(here) else found)


def _finish(run: "Run", *, places: str = "") -> None:
    """Where the run is, and what to do with it; ``places``: variables that its commands need."""
    _say(f"run: {run.path}")
    _say(f"report: {run.path / 'report.html'} (open it in a browser; model card and TRIPOD+AI table are linked there)")
    program = _command("medfuse")
    uri = run.read("tracking")["uri"] if (run.path / "tracking.json").is_file() else ""
    if uri.startswith("sqlite:"):
        _say(f"curves: {_command('mlflow')} ui --backend-store-uri {uri}")
    _say(f"next: {places}{program} explain {run.path}   # what each modality contributed")
    _say(f"then: {places}{program} app {run.path}   # the review, in a browser on this machine")


@app.command()
def version() -> None:
    """Print the version."""
    from medfuse import __version__

    _say(__version__)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: arguments without the program's name; default: those of the process.

    Returns:
        0 when it went well, 1 when a check failed, 2 on an error that the message explains, 130 when interrupted.
    """
    try:
        code = app(args=list(args) if args is not None else None, standalone_mode=False)
        sys.stdout.flush()  # a full disk shows here at the latest
    except typer.Exit as exit_:
        code = exit_.exit_code
    except MedfuseError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"medfuse: {error}{notes}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except BrokenPipeError:  # nobody reads on, as in "medfuse check X | head"
        _drop_output()
        code = 1
    except OSError as error:
        if error.errno not in _OUTSIDE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"medfuse: {where}{error.strerror}; check path, rights and free space, then run again", file=sys.stderr)
        _drop_output()
        code = 2
    except Exception as error:
        if type(error).__module__.split(".")[0] in {"click", "typer"} and hasattr(error, "format_message"):
            print(f"medfuse: {error.format_message()}", file=sys.stderr)
            code = 2
        else:
            raise
    if code == _INTERRUPTED:  # also what Typer returns when Ctrl-C stops a command
        print("medfuse: interrupted; run it again with the same --out to go on", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _drop_output() -> None:
    """What could not be written is not tried again when the process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def entry() -> None:
    """Console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
