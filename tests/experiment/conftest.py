"""What tests of experiments share."""

import pytest
from fake_runs import Fake, install


@pytest.fixture
def fake(monkeypatch):
    """A method that takes no time, in the place of `align`."""
    return install(Fake(), monkeypatch.setattr)
