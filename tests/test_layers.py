"""Imports point downward, and each third party stays behind its fence."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medfuse"
FILES = sorted(PACKAGE.rglob("*.py"))

# A module may import medfuse modules of a lower layer, or of its own layer when the two stand in one group here.
LAYERS = [
    {"errors", "types", "files", "outputs", "limits", "doctor", "processes", "mapped"},
    {"config", "card", "tables", "targets", "sample", "prediction", "games", "pseudonyms", "sources"},
    {
        "cohort",
        "splits",
        "batch",
        "losses",
        "running_sum",
        "store",
        "stored_table",
        "preprocessing",
        "cox",
        "cox_likelihood",
    },
    {"loaders", "extractors", "models", "metrics"},
    {"extraction", "inspection", "gate"},
    {
        "dataset",
        "training",
        "baselines",
        "evaluation",
        "audit",
        "isolation",
        "proxies",
        "twins",
        "synthetic",
        "scenarios",
        "stress",
    },
    {"explain"},
    {
        "screening",
        "checking",
        "run",
        "frames",
        "applying",
        "jobs",
        "folds",
        "merging",
        "explaining_parts",
        "explaining_prototypes",
        "explained",
    },
    {"tracking", "report", "report_sections", "figures", "palette", "pages", "documents"},
    {
        "workflow",
        "explaining",
        "within",
        "within_events",
        "prototypes",
        "stressing",
        "benchmark_table",
        "benchmarking",
        "demo",
    },
    {"review"},
    {"exporting", "jupyter"},
    {"cli", "__main__", "_pyfunc"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
APART = ({"loaders", "models", "metrics", "extractors"},)  # of one layer, and they do not know each other
FENCED = {
    "mlflow": {"tracking", "_pyfunc"},
    "streamlit": set(),  # in apps/ alone
    "plotly": {"review"},
    "pydicom": {"loaders"},
    "nibabel": {"loaders"},
    "nrrd": {"loaders"},
    "openslide": {"loaders"},
    "tifffile": {"loaders"},
    "simplejpeg": {"loaders"},
    "wsidicom": {"loaders"},
    "sksurv": {"baselines", "training"},
    "lifelines": {"baselines"},
    "wfdb": set(),
    "soundfile": {"loaders"},
    "defusedxml": {"loaders"},
    "pickle": set(),
    "joblib": set(),
    "monai": {"extractors", "models"},
    "transformers": {"extractors"},
    "huggingface_hub": {"extractors"},
}
TORCH_ONLY = {"batch", "models", "losses", "running_sum", "training"}
TORCH_ONLY_MAY = {"torch", "numpy", "safetensors", "lightning_fabric", "medfuse"} | set(sys.stdlib_module_names)
TORCH_ONLY_BUT = {  # imported when such a part is built
    "models/encoders/volume_resnet.py": {"monai"},
    "training/forests.py": {"sksurv", "sklearn"},
}
TORCH_ONLY_MEDFUSE = {"errors", "types", "files", "targets", "sample", "prediction", "preprocessing"} | TORCH_ONLY


def component(path: Path) -> str:
    """The first part of a file's module path below medfuse."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Absolute names that a file imports, at any depth of the file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_lower_layers(path: Path) -> None:
    here = component(path)
    if here == "__init__":
        assert not [name for name in imports(path) if name.startswith("medfuse")]
        return
    assert here in LEVEL, f"{here} stands in no layer of tests/test_layers.py"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "medfuse" or len(parts) < 2 or parts[1] == here or parts[1] not in LEVEL:
            continue
        assert LEVEL[parts[1]] <= LEVEL[here], f"{path}: {here} imports {name} of a higher layer"
        for group in APART:
            assert not {here, parts[1]} <= group, f"{path}: {here} and {parts[1]} do not know each other"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_third_parties_stay_behind_their_fence(path: Path) -> None:
    here = component(path)
    for name in imports(path):
        top = name.split(".")[0]
        assert here in FENCED.get(top, {here}), f"{path} imports {top}"
        if here in TORCH_ONLY:
            but = TORCH_ONLY_BUT.get(path.relative_to(PACKAGE).as_posix(), set())
            assert top in TORCH_ONLY_MAY | but, f"{path} imports {top}"
            if top == "medfuse" and len(name.split(".")) > 1:
                assert name.split(".")[1] in TORCH_ONLY_MEDFUSE, f"{path} imports {name}"


def test_no_cycle_between_files() -> None:
    names = {
        ".".join(("medfuse", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): p for p in FILES
    }
    graph = {}
    for name, path in names.items():
        targets = set()
        for node in ast.parse(path.read_text()).body:  # imports inside functions break no import order
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("medfuse"):
                for alias in node.names:
                    deeper = f"{node.module}.{alias.name}"
                    targets.add(deeper if deeper in names else node.module)
            elif isinstance(node, ast.Import):
                targets |= {a.name for a in node.names if a.name in names}
        graph[name] = {t for t in targets if t in names and t != name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done:
            return
        for target in graph[name]:
            visit(target, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())
    assert done == set(graph)


HEAVY = {
    "torch",
    "monai",
    "transformers",
    "mlflow",
    "streamlit",
    "sklearn",
    "sksurv",
    "lifelines",
    "pandas",
    "numba",
    "matplotlib",
}


@pytest.mark.parametrize("code", ["import medfuse", "from medfuse.cli import main; main(['--help'])"])
def test_start_up_loads_nothing_heavy(code: str) -> None:
    script = f"import sys\n{code}\nsys.stderr.write(' '.join(m for m in {sorted(HEAVY)!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
