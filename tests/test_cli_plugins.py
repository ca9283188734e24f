"""``distillzoo plugins`` from the command line, with plugins that stand on the path like installed ones."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from distillzoo.core.cli.plugins import KINDS

OWN = ["my-plugin", "first-plugin", "second-plugin", *(f"distillzoo-my-{kind}" for kind in KINDS)]
"""The plugins of these tests; what else is installed plays no role."""

ENVIRONMENT = {"DISTILLZOO_PLUGINS": ",".join(OWN), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}

Run = Callable[..., subprocess.CompletedProcess[str]]

PLUGIN = """
from distillzoo.core import hookimpl

@hookimpl
def register_subsets(register):
    register("likeliest", f"{__name__}_part:Likeliest")
"""

PART = '''
import torch
from distillzoo.core.subset import ActionSubset, Subset

class Likeliest(ActionSubset):
    """A(s) = {the likeliest token}. Tables [N, 1]. References: none."""

    def select(self, teacher):
        logits, actions = teacher.top(1, torch.arange(teacher.rows))
        logprobs = (logits - teacher.logsumexp()[:, None]).detach()
        return Subset(actions, torch.ones_like(actions, dtype=torch.bool), logprobs, logprobs.exp()[:, 0])
'''


def install(site: Path, name: str, source: str = PLUGIN, part: str = PART) -> None:
    """Put a plugin on a path as pip would: a module with its hook, and one with its part."""
    module = name.replace("-", "_")
    (site / f"{module}.py").write_text(source)
    (site / f"{module}_part.py").write_text(part)
    facts = site / f"{module}-0.3.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
    (facts / "entry_points.txt").write_text(f"[distillzoo]\n{name} = {module}\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture
def distillzoo(tmp_path: Path, site: Path) -> Run:
    def run(*args: object, module: str = "distillzoo.core.cli.main", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(site), **env},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr


def test_a_plugin_is_listed_with_version_parts_and_origin(distillzoo, site):
    install(site, "my-plugin")
    found = json.loads(distillzoo("plugins", "list", "--json").stdout)
    mine = next(p for p in found["plugins"] if p["name"] == "my-plugin")
    assert (mine["version"], mine["api"], mine["modules"]) == ("0.3", "1.0", ["my_plugin"])
    assert mine["parts"] == [{"kind": "subset", "name": "likeliest"}]
    table = distillzoo("plugins", "list").stdout
    assert "subset likeliest" in table
    assert "my_plugin.py" in table.replace("\n", "").replace(" ", "")
    assert "my-plugin" in distillzoo("list", "subsets").stdout
    assert "my-plugin" not in distillzoo("list", "subsets", DISTILLZOO_PLUGINS="").stdout


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("DISTILLZOO_API = '2.0'" + PLUGIN, "built for the plugin API 2.0, and this distillzoo has 1.0"),
        (
            "DISTILLZOO_API = '1.7'" + PLUGIN,
            "needs the plugin API 1.7, and this distillzoo has 1.0: upgrade distillzoo",
        ),
        ("DISTILLZOO_API = 'new'" + PLUGIN, "should be a version such as '1.0'"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_reported_and_the_rest_works(distillzoo, site, source, cause):
    install(site, "my-plugin", source)
    result = distillzoo("plugins", "list")
    assert result.returncode == 0
    assert "subsets" in result.stdout
    assert "likeliest" not in result.stdout
    for stream in (result.stdout, result.stderr):
        assert "my-plugin" in stream
        assert cause in " ".join(stream.split())


def test_a_collision_names_both_distributions(distillzoo, site):
    install(site, "first-plugin")
    install(site, "second-plugin")
    refused(
        distillzoo("plugins", "list"),
        "registered twice, by 'first-plugin' and by 'second-plugin'",
        "DISTILLZOO_PLUGINS",
    )
    assert distillzoo("plugins", "list", DISTILLZOO_PLUGINS="first-plugin").returncode == 0


def test_a_misspelt_hook_is_an_error(distillzoo, site):
    install(site, "my-plugin", PLUGIN.replace("def register_subsets", "def register_subset"))
    refused(distillzoo("plugins", "list"), "'my-plugin'", "Did you mean 'register_subsets'")


def test_check_passes_a_good_part_and_names_what_is_wrong_with_a_bad_one(distillzoo, site):
    install(site, "my-plugin")
    result = distillzoo("plugins", "check", "my-plugin")
    assert result.returncode == 0, result.stdout
    assert "all hold" in result.stdout
    (site / "my_plugin_part.py").write_text(PART.replace(" - teacher.logsumexp()[:, None]", ""))
    result = distillzoo("plugins", "check", "likeliest", "--json")
    assert result.returncode == 1
    failed = {r["check"]: r["message"] for r in json.loads(result.stdout)["checks"] if r["status"] == "failed"}
    assert failed.keys() >= {"logprobs", "mass"}
    assert "subtract teacher.logsumexp()" in failed["logprobs"]


def test_check_reports_a_known_failure_and_one_that_is_none_any_more(distillzoo, site):
    bad = PART.replace(" - teacher.logsumexp()[:, None]", "")
    known = '{"logprobs": "raw on purpose", "mass": "so is this", "level": "and this", "low-precision": "-"}'
    bad = bad.replace("    def select", f"    known_failures = {known}\n\n    def select")
    install(site, "my-plugin", part=bad)
    result = distillzoo("plugins", "check", "likeliest")
    assert "known: subset likeliest, logprobs: raw on purpose" in result.stdout
    assert "It passes, and known_failures says it doesn't" in result.stdout, "low-precision holds"
    assert result.returncode == 1


def test_check_refuses_an_unknown_name(distillzoo):
    refused(distillzoo("plugins", "check", "top-q"), "no plugin or part named 'top-q'", "'top-p'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my-part", "--kind", "subsets"], "Did you mean 'subset'"),
        (["My_Part", "--kind", "subset"], "lower-case words and hyphens"),
        (["2-part", "--kind", "subset"], "a letter first"),
        (["top-p", "--kind", "subset"], "The subset 'top-p' exists, in distillzoo"),
        (["site", "--kind", "subset"], "exists: choose another name"),
    ],
)
def test_new_refuses_what_would_not_work(distillzoo, arguments, message):
    refused(distillzoo("plugins", "new", *arguments), message)


def test_new_says_where_it_cannot_write(distillzoo, tmp_path):
    (tmp_path / "file").write_text("")
    refused(
        distillzoo("plugins", "new", "my-part", "--kind", "subset", "--into", "file"), "Cannot write 'file/my-part'"
    )


def test_what_new_writes_passes_at_once(distillzoo, tmp_path, site):
    """Every template, on the path as pip would put it; the pip installation itself is CI's tutorial."""
    for kind in KINDS:
        assert distillzoo("plugins", "new", f"my-{kind}", "--kind", kind).returncode == 0
        folder = tmp_path / f"my-{kind}"
        project = tomllib.loads((folder / "pyproject.toml").read_text())
        (entry,) = project["project"]["entry-points"]["distillzoo"].values()
        install(site, project["project"]["name"])
        (site / f"{entry}.py").unlink()
        (folder / entry).rename(site / entry)
    result = distillzoo("-q", "-W", "error", *(f"my-{kind}/tests" for kind in KINDS), module="pytest")
    assert result.returncode == 0, result.stdout
    collected = distillzoo("--conformance", "my-metric", "--conformance", "my-recipe", "-q", "site", module="pytest")
    assert collected.returncode == 0, collected.stdout
    config = distillzoo("show", "config", "my-recipe")
    assert "top-k" in config.stdout, config.stderr


def test_conformance_of_an_unknown_name_is_a_usage_error(distillzoo):
    result = distillzoo("--conformance", "nothing-such", module="pytest")
    assert result.returncode == 4
    assert "no plugin or part named 'nothing-such'" in result.stderr + result.stdout


def test_a_part_that_cannot_be_imported_hides_no_other(distillzoo, site):
    install(site, "my-plugin", part="raise RuntimeError('no luck')")
    listed = distillzoo("list", "subsets")
    assert listed.returncode == 0
    assert "top-p" in listed.stdout
    assert "unusable" in listed.stdout
    checked = distillzoo("plugins", "check", "likeliest")
    assert checked.returncode == 1
    assert "cannot be imported: RuntimeError: no luck" in checked.stderr
    refused(distillzoo("run", "--algo", "bd-iql", "--subset", "likeliest"), "RuntimeError: no luck")


def test_a_part_that_misdeclares_itself_hides_no_other(distillzoo, site):
    install(
        site, "my-plugin", part=PART.replace("    def select", "    known_failures = {'sortd': '-'}\n\n    def select")
    )
    result = distillzoo("plugins", "check", "my-plugin")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "names 'sortd', which is no check of it" in result.stderr
    (site / "my_plugin_part.py").write_text(PART.replace("def select(self", "def choose(self"))
    result = distillzoo("plugins", "check", "my-plugin")
    assert result.returncode == 1
    assert "abstract method" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (PLUGIN.replace("@hookimpl\n", ""), "register_subsets is not marked with @hookimpl"),
        (PLUGIN.replace("(register)", "(registrar)").replace(" register(", " registrar("), "registrar"),
    ],
)
def test_a_hook_that_would_never_be_called_is_an_error(distillzoo, site, source, message):
    install(site, "my-plugin", source)
    refused(distillzoo("plugins", "list"), "'my-plugin'", message)


def test_two_entry_points_of_one_module_are_told_apart_from_a_collision(distillzoo, site):
    install(site, "my-plugin")
    (site / "my_plugin-0.3.dist-info" / "entry_points.txt").write_text("[distillzoo]\na = my_plugin\nb = my_plugin\n")
    refused(distillzoo("plugins", "list"), "do two of its entry points name the same module")


def test_a_plugin_whose_second_hook_fails_leaves_nothing_behind(distillzoo, site):
    source = PLUGIN + "\n@hookimpl\ndef register_metrics(register):\n    raise SystemExit('bye')\n"
    install(site, "my-plugin", source)
    result = distillzoo("plugins", "list")
    assert result.returncode == 0
    assert "likeliest" not in result.stdout
    assert "bye" in result.stdout


COMMAND = """
import click
from distillzoo.core import hookimpl

@click.command()
def hello():
    "Say hello."
    click.echo("hello from a plugin")

@hookimpl
def register_commands(register):
    register("hello", hello)
"""


def test_a_plugin_brings_a_command(distillzoo, site):
    install(site, "my-plugin", COMMAND)
    assert "Say hello." in distillzoo("--help").stdout
    assert distillzoo("hello").stdout == "hello from a plugin\n"


def test_a_command_cannot_take_a_builtin_ones_place_nor_break_the_help(distillzoo, site):
    install(site, "my-plugin", COMMAND.replace('"hello", hello', '"run", hello'))
    refused(distillzoo("--help"), "The command 'run' of my-plugin 0.3 has the name of a built-in one")
    (site / "my_plugin.py").write_text(COMMAND.replace('"hello", hello', '"hello", "no.such:thing"'))
    result = distillzoo("--help")
    assert result.returncode == 0
    assert "unusable" in result.stdout
