"""Every run of the tests tries the same examples, so that one that fails can be run again.

`GRADNORM_TEST_DEVICE=cuda` makes the networks of the core's tests there.
"""

import os

import torch
from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")

if device := os.environ.get("GRADNORM_TEST_DEVICE"):
    torch.set_default_device(device)
    torch.backends.cudnn.allow_tf32 = False
