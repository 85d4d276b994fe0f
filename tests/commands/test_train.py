"""What cannot be a run at all ends in one sentence, before llm-foundry reads it."""

import errno
import os

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from llmshearing import train

WHOLE = '\n'.join(f'{key}: {{}}' for key in train.REQUIRED) + '\nalgorithms: {targeted_pruning: {}}\n'


@pytest.mark.parametrize(
    'content, overrides, message',
    [
        (None, [], 'there is no such YAML file'),
        ('', [], 'missing global_train_batch_size, model, tokenizer'),
        (b'# d\xe9j\xe0 vu', [], "can't decode byte 0xe9 in position 3: invalid continuation byte; save it as UTF-8."),
        ('hello', [], 'missing global_train_batch_size, model, tokenizer'),
        ('- 1', [], 'expected keys and values at the top level'),
        ('1: 2', [], 'every key as text'),
        (WHOLE.replace('model: {}', ''), [], 'missing model.'),
        (WHOLE, ['max_duration=3ba', 'algorithms=[]'], 'algorithms=[]: does not fit what'),
        (
            WHOLE + 'variables: {data: x, work: y}\n',
            ['variables.work=z', 'variables.dat=/x'],
            "no variable 'dat'. Did you mean 'data'? Possible: data, work.",
        ),
        (WHOLE, ['variables.dat=/x'], "no variable 'dat'. It has none."),
    ],
)
def test_one_sentence(tmp_path, capsys, content, overrides, message):
    path = tmp_path / 'run.yaml'
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert train.main([str(path), *overrides]) == 1
    error = capsys.readouterr().err
    assert message in error and str(path) in error and 'Traceback' not in error


def test_code_paths_are_paths(tmp_path, capsys, monkeypatch):
    """llm-foundry imports them before it hands the configuration on."""
    import llmfoundry.command_utils

    monkeypatch.setattr(
        llmfoundry.command_utils, 'train_from_yaml', lambda _, overrides: given.extend(overrides) or Run
    )
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'parts.py').touch()
    given, path = [], tmp_path / 'run.yaml'

    class Run:
        close = staticmethod(lambda: None)

    path.write_text(WHOLE + 'variables: {work: $HOME}\ncode_paths: [~/parts.py, "${variables.work}/parts.py"]\n')
    assert train.main([str(path), 'seed=3']) == 0
    assert given == ['seed=3', f'code_paths=["{tmp_path}/parts.py", "{tmp_path}/parts.py"]']
    for wrong, message in (
        ('parts.py', "expected a list of Python files, got 'parts.py'"),
        ('[1]', r'expected a list of Python files, got [1]'),
        ('[nope.py]', 'expected Python files, and nope.py is none'),
        ('[.]', 'expected Python files, and . is none'),
    ):
        path.write_text(WHOLE + f'code_paths: {wrong}\n')
        assert train.main([str(path)]) == 1
        assert f'ERROR: code_paths: {message}' in capsys.readouterr().err
    given.clear()
    path.write_text(WHOLE + 'code_paths: null\n')
    assert train.main([str(path)]) == 0 and given == ['code_paths=[]']


@pytest.mark.parametrize('reference', ['${nope}', '${oc.env:HOME}'])
def test_references_that_lead_nowhere(tmp_path, capsys, reference):
    """The second is one to OmegaConf, and llm-foundry takes it away."""
    path = tmp_path / 'run.yaml'
    path.write_text(WHOLE + f'save_folder: {reference}/x\n')
    assert train.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert 'ERROR: save_folder: ' in error and 'is $NAME in a path, and KEY=$NAME on' in error
    assert 'Traceback' not in error


def raised(code, name):
    """The error of a function of a module of that name."""
    space = {'__name__': name}
    exec(code, space)
    try:
        space['run']()
    except (KeyError, ImportError, OSError, RuntimeError) as error:
        return error


def test_what_other_libraries_raise_before_the_first_batch_is_one_sentence(tmp_path, capsys, monkeypatch):
    import llmfoundry.command_utils

    def main(error):
        def fail(*_):
            raise error

        monkeypatch.setattr(llmfoundry.command_utils, 'train_from_yaml', fail)
        path = tmp_path / 'run.yaml'
        path.write_text(WHOLE)
        return train.main([str(path)])

    assert main(raised('def run(): {}["window"]', 'composer.callbacks.odd')) == 1
    error = capsys.readouterr().err
    assert (
        "composer.callbacks.odd failed before the first batch (KeyError: 'window'). It is not a part of ours" in error
    )
    assert main(raised('def run(): raise ImportError("flash_attn is not installed")', 'llmshearing.models.odd')) == 1
    assert 'ERROR: flash_attn is not installed\n' in capsys.readouterr().err  # as somebody asked for it
    assert main(raised('def run(): open("/nowhere/x")', 'llmfoundry.callbacks.env_logging_callback')) == 1
    assert 'ERROR: llmfoundry.callbacks.env_logging_callback: [Errno 2] No such file' in capsys.readouterr().err
    code = 'def run():\n try: import nothing_here\n except ImportError as e: raise RuntimeError("Error in x.py") from e'
    assert main(raised(code, 'llmfoundry.odd')) == 1
    assert (
        "(RuntimeError: Error in x.py; ModuleNotFoundError: No module named 'nothing_here')" in capsys.readouterr().err
    )
    for code, name in (
        ('def run(): {}["x"]', 'llmshearing.masks.odd'),
        ('def _train_loop(): {}["x"]\ndef run(): _train_loop()', 'composer.odd'),
    ):
        with pytest.raises(KeyError):  # a fault of ours, or after the run began
            main(raised(code, name))


def test_a_full_disk_is_one_sentence(tmp_path, capsys, monkeypatch):
    (tmp_path / 'x.yaml').write_text(WHOLE)

    def save(*_):  # as torch.save does
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError('[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0') from error

    monkeypatch.setattr('llmfoundry.command_utils.train_from_yaml', save)
    assert train.main([str(tmp_path / 'x.yaml')]) == 1
    error = capsys.readouterr().err
    assert 'No space left on device. What was being written is not whole' in error and 'enforce' not in error


def test_a_damaged_sharded_checkpoint_is_one_sentence(tmp_path, capsys, monkeypatch):
    """What torch raises for several ranks holds what each of them raised."""
    (tmp_path / 'x.yaml').write_text(WHOLE)
    failure = CheckpointException('read', {0: (ValueError('shard 3 is missing'), None)})

    def broken(*_):
        raise failure

    monkeypatch.setattr('llmfoundry.command_utils.train_from_yaml', broken)
    assert train.main([str(tmp_path / 'x.yaml')]) == 1
    error = capsys.readouterr().err
    assert 'ERROR: shard 3 is missing' in error and 'Traceback' not in error
