"""Small worlds for the tests: logits, tiny random models and a word tokenizer."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a hub
os.environ["DISTILLZOO_PLUGINS"] = ""  # nor depends on what else is installed
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # several workers with several threads each get in one another's way
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch

from distillzoo.core.registry import Registry, installed
from tests.tiny import Tiny, make_tiny


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def registry() -> Registry:
    return installed()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A saved teacher and student of a few thousand random weights with a word tokenizer."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The program in an empty folder but in this process, which saves the seconds that its imports take."""
    from distillzoo.core.cli.main import main

    def command(*args: object) -> "subprocess.CompletedProcess[str]":
        arguments = ["distillzoo", *map(str, args)]
        code = 0
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.chdir(tmp_path)
            patch.setenv("COLUMNS", "120")
            patch.setattr(sys, "argv", arguments)
            capfd.readouterr()
            try:
                main()
            except SystemExit as exit:
                code = int(exit.code or 0)
        out, errors = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, errors)

    return command
