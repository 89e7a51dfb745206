import pytest
import torch
import transformers


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny networks are slower with more threads, much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(before)
