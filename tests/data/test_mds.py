"""Token ids against the size of a vocabulary, as arrays and as tensors."""

import numpy as np
import torch

from llmshearing.data.mds import foreign_id


def test_an_id_outside_the_vocabulary_is_found_whichever_side_it_lies_on():
    inside = np.array([[0, 1], [7, 3]], np.uint16)
    assert foreign_id(inside, 8) is None and foreign_id(inside, 7) == 7
    assert foreign_id(torch.tensor([[5, 9], [-2, -1]]), 8) == -2
    assert foreign_id(np.array([np.iinfo(np.uint64).max]), 8) == np.iinfo(np.uint64).max
