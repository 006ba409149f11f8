from medfuse import doctor


def test_every_dependency_of_the_metadata_is_checked_and_well_here():
    checks = {check.name: check for check in doctor.diagnose()}
    assert {"python", "torch", "mlflow", "pydicom", "device", "data"} <= set(checks)
    assert all(check.ok for check in checks.values()), [c for c in checks.values() if not c.ok]
    assert "floor 2.10" in checks["torch"].found


def test_a_version_below_its_floor_is_named_with_its_remedy(monkeypatch):
    real = doctor.importlib.metadata.version
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "2.9.1" if name == "torch" else real(name))
    check = next(c for c in doctor.packages() if c.name == "torch")
    assert not check.ok
    assert check.remedy == 'pip install "torch>=2.10"'


def test_a_missing_package_is_a_problem_only_when_required(monkeypatch):
    def version(name):
        if name in {"monai", "openslide-bin"}:
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return "99.0"

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    checks = {c.name: c for c in doctor.packages()}
    assert not checks["monai"].ok
    assert checks["openslide-bin"].ok


def test_a_data_root_that_is_no_folder_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDFUSE_DATA", str(tmp_path / "none"))
    assert not doctor.data_root().ok
    monkeypatch.setenv("MEDFUSE_DATA", str(tmp_path))
    assert doctor.data_root().ok
