"""What cannot be a run at all ends in one sentence, before llm-foundry reads it."""

import pytest

from llmshearing import train

WHOLE = '\n'.join(f'{key}: {{}}' for key in train.REQUIRED) + '\nalgorithms: {targeted_pruning: {}}\n'


@pytest.mark.parametrize(
    'content, overrides, message',
    [
        (None, [], 'Is a directory'),
        ('', [], 'missing global_train_batch_size, model, tokenizer'),
        ('hello', [], 'missing global_train_batch_size, model, tokenizer'),
        ('- 1', [], 'expected keys and values at the top level'),
        ('1: 2', [], 'every key as text'),
        (WHOLE.replace('model: {}', ''), [], 'missing model.'),
        (WHOLE, ['max_duration=3ba', 'algorithms=[]'], 'algorithms=[]: does not fit what'),
    ],
)
def test_one_sentence(tmp_path, capsys, content, overrides, message):
    path = tmp_path / 'run.yaml'
    path.mkdir() if content is None else path.write_text(content)
    assert train.main([str(path), *overrides]) == 1
    error = capsys.readouterr().err
    assert message in error and str(path) in error and 'Traceback' not in error
