"""The registry, by promise: names, origins, collisions, misspelt hooks, plugins that fail."""

import types

import pytest

from distillzoo.core import hookimpl
from distillzoo.core import registry as registry_module
from distillzoo.core.errors import UnknownName
from distillzoo.core.part import Part
from distillzoo.core.registry import PluginError, Registry
from distillzoo.core.subset import ActionSubset


class Mine(ActionSubset):
    """A subset for the tests."""

    def select(self, teacher):
        raise AssertionError("never called")


def plugin(name: str, target: object, hook: str = "register_subsets") -> object:
    def register_part(register):
        register(name, target)

    register_part.__name__ = hook
    return types.SimpleNamespace(**{hook: hookimpl(register_part)}, __name__=f"plugin of {name}")


def test_a_part_is_found_by_name_with_its_origin():
    found = Registry()
    found.add(plugin("mine", Mine), "my-package", "1.2")
    assert found.get("subset", "mine") is Mine
    assert found.entry("subset", "mine").origin == "my-package 1.2"
    assert found.names("subset") == ["mine"]


def test_a_lazy_target_is_imported_when_used():
    found = Registry()
    found.add(plugin("mine", "distillzoo.plugins.subsets.top_p:TopP"), "my-package", "1.2")
    assert found.get("subset", "mine").__name__ == "TopP"


@pytest.mark.parametrize("target", ["no.such.module:X", "distillzoo.plugins.subsets.top_p:Nothing"])
def test_a_target_that_cannot_be_imported_names_its_distribution(target):
    found = Registry()
    found.add(plugin("mine", target), "my-package", "1.2")
    with pytest.raises(PluginError, match=r"'mine' of my-package 1\.2 cannot be imported"):
        found.get("subset", "mine")


def test_a_target_of_the_wrong_kind_is_refused():
    found = Registry()
    found.add(plugin("mine", Part), "my-package", "1.2")
    with pytest.raises(PluginError, match="is no ActionSubset"):
        found.get("subset", "mine")


def test_a_collision_names_both_distributions():
    found = Registry()
    found.add(plugin("mine", Mine), "first", "1")
    with pytest.raises(PluginError, match="registered twice, by 'first' and by 'second'"):
        found.add(plugin("mine", Mine), "second", "1")


def test_the_same_name_in_two_kinds_is_no_collision():
    found = Registry()
    found.add(plugin("mine", Mine), "first", "1")
    found.add(plugin("mine", Mine, "register_objectives"), "first", "1")


def test_a_misspelt_hook_is_an_error_with_the_right_name():
    with pytest.raises(PluginError, match=r"'my-package'.*register_subset.*'register_subsets'"):
        Registry().add(plugin("mine", Mine, "register_subset"), "my-package", "1")


@pytest.mark.parametrize("name", ["Mine", "my_subset", "-x", "a b", ""])
def test_malformed_names_are_refused(name):
    with pytest.raises(PluginError, match="lower-case"):
        Registry().add(plugin(name, Mine), "my-package", "1")


def test_unknown_names_get_the_nearest_valid_ones(registry):
    with pytest.raises(UnknownName, match=r"no subset named 'top_p'.*'top-p'"):
        registry.get("subset", "top_p")
    with pytest.raises(UnknownName, match=r"Valid names: .*full, .*top-k, top-p"):
        registry.get("subset", "zzz")


class _Point:
    name = "broken"
    value = "broken"
    dist = types.SimpleNamespace(name="broken-plugin", version="0")

    def load(self):
        raise SyntaxError("not python")


def test_a_plugin_that_fails_to_import_is_reported_and_the_rest_works(monkeypatch):
    monkeypatch.delenv("DISTILLZOO_PLUGINS")
    points = list(registry_module.metadata.entry_points(group="distillzoo"))
    monkeypatch.setattr(registry_module.metadata, "entry_points", lambda group: [*points, _Point()])
    found = Registry.installed()
    (failure,) = (f for f in found.failures if f.plugin == "broken")
    assert failure.distribution == "broken-plugin"
    assert "SyntaxError: not python" in failure.cause
    assert "top-p" in found.names("subset")


def test_the_environment_restricts_third_party_plugins(monkeypatch):
    monkeypatch.setattr(registry_module.metadata, "entry_points", lambda group: [_Point()])
    for value, failures in (("", 0), ("other", 1), ("Broken_Plugin", 1), ("Broken_Plugin, other", 2)):
        monkeypatch.setenv("DISTILLZOO_PLUGINS", value)
        assert len(Registry.installed().failures) == failures


def test_every_builtin_part_can_be_built_and_documents_itself(registry):
    for kind in ("subset", "objective", "extraction", "trajectories", "metric"):
        for name in registry.names(kind):
            part = registry.get(kind, name)
            assert part.__doc__
            instance = part.examples()[0]
            inner = {f: getattr(instance, f) for f in part.model_fields if isinstance(getattr(instance, f), Part)}
            assert part(**(instance.model_dump() | inner)) == instance, "its configuration round-trips"
            for field in part.model_fields.values():
                assert field.description, f"{kind} {name}: every parameter says what it is"
