"""MDS folders as they lie on a disk, and token ids against the size of a vocabulary."""

import numpy as np
import pytest
import torch

from llmshearing.data.mds import check_ids, mds_folders


def test_an_id_outside_the_vocabulary_is_found_whichever_side_it_lies_on():
    inside = np.array([[0, 1], [7, 3]], np.uint16)
    check_ids('data', inside, 8)
    largest = np.array([np.iinfo(np.uint64).max])
    for ids, vocabulary, found in (inside, 7, 7), (torch.tensor([[5, 9], [-2, -1]]), 8, -2), (largest, 8, largest[0]):
        with pytest.raises(ValueError, match=f'^data has the token id {found}, outside a vocabulary of {vocabulary}: '):
            check_ids('data', ids, vocabulary)


def test_linked_folders_are_found_and_unfinished_ones_are_not(tmp_path):
    for folder in ('a/eval/web', 'mix/eval/code', 'mix/.new/eval/web'):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / 'index.json').write_text('{}')
    (tmp_path / 'mix' / 'eval' / 'web').symlink_to(tmp_path / 'a' / 'eval' / 'web')
    (tmp_path / 'mix' / 'eval' / 'again').symlink_to(tmp_path / 'mix')  # round and round
    assert mds_folders(tmp_path / 'mix') == ['eval/code', 'eval/web']
