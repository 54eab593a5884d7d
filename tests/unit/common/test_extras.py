import importlib.metadata

import pytest

from moe.common import extras

ASKED = [
    "torch>=2.7",
    "fast==0.3.5; extra == 'convert'",
    "whole[hf]<3,>=2; extra == 'eval'",
    "faster; extra == 'convert'",
]


def test_the_command_names_the_packages_of_the_extra_and_no_other(monkeypatch) -> None:
    monkeypatch.setattr(extras, "requires", lambda project: ASKED if project == "moe-trainer" else None)
    assert extras.install_command("convert") == "pip install fast==0.3.5 faster"
    assert extras.install_command("eval") == "pip install 'whole[hf]<3,>=2'"


def test_without_an_installation_the_extra_itself_is_named(monkeypatch) -> None:
    def missing(project: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(project)

    monkeypatch.setattr(extras, "requires", missing)
    assert extras.install_command("ray") == "pip install 'moe-trainer[ray]'"


@pytest.mark.parametrize(("extra", "package"), [("convert", "gigatoken=="), ("ray", "ray"), ("eval", "lm-eval[hf]==")])
def test_every_extra_that_a_command_names_is_one_of_the_package(extra: str, package: str) -> None:
    try:
        importlib.metadata.distribution(extras.PROJECT)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("moe-trainer is not installed")
    assert package in extras.install_command(extra) and "torch" not in extras.install_command(extra)
