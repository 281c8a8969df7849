"""Every run of the tests tries the same examples, so that one that fails can be run again."""

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
