"""Settings of every test."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # tiny tensors: threads only get in each other's way
    torch.set_num_threads(1)
