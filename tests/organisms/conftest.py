"""Organisms are trained once a session, into a cache of the session's own."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("UNDERSTUDY_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()
