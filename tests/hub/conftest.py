"""The Hugging Face hub itself: `make test-hub` runs these tests. Without it they fail at once."""

import pytest

from aisp.experiment.hub import unreachable


@pytest.fixture(scope="session", autouse=True)
def online(request):
    if why := unreachable():
        told = f"these tests ask the Hugging Face hub, which is out of reach here: {why}"
        if all(item.get_closest_marker("hub") for item in request.session.items):
            pytest.exit(told, returncode=1)  # once, and not for every test
        pytest.fail(told, pytrace=False)
