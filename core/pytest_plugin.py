"""The pytest plugin: ``pytest --conformance NAME`` runs the kit on an installed plugin, without a test file.

It is loaded in every pytest run of the environment, so it imports nothing until it is asked.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("distillzoo")
    group.addoption(
        "--conformance",
        metavar="NAME",
        action="append",
        default=[],
        help="run distillzoo's conformance kit on an installed distribution or part; may be given again",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--conformance") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []  # the tests of the current folder were not asked for


class Item(pytest.Item):
    """One check on one part."""

    def __init__(self, *, test: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._test = test

    def runtest(self) -> None:
        self._test()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from distillzoo.core.checks import CheckFailed

        return str(excinfo.value) if excinfo.errisinstance(CheckFailed) else super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[str, None, str]:
        return "distillzoo", None, self.name


class Conformance(pytest.Collector):
    """The checks of one name."""

    def collect(self) -> Iterator[Item]:
        from distillzoo.core.checks import parametrize_with_checks, parts_of
        from distillzoo.core.registry import installed

        registry = installed()
        parts = [part for entry in registry.belonging_to(self.name) for part in parts_of(registry, entry)]
        for param in parametrize_with_checks(parts).args[1]:
            item = Item.from_parent(self, name=param.id, test=param.values[0])
            for mark in param.marks:
                item.add_marker(mark)
            yield item


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--conformance"):
        return
    from distillzoo.core.checks import CheckFailed
    from distillzoo.core.errors import UserError

    for name in config.getoption("--conformance"):
        collector = Conformance.from_parent(session, name=name)
        try:
            items.extend(collector.collect())
        except (UserError, CheckFailed) as error:
            raise pytest.UsageError(str(error)) from None
