"""Paths mean what they mean in a shell; names of checkpoints have fields that exist and stay in their folder."""

import pytest

from llmshearing.config.files import check_names, expand_paths
from tests.config.test_ranges import nested

BASE = {'tokenizer': {'name': 'x'}}
SAVED = {'save_folder': 'runs', 'save_num_checkpoints_to_keep': 2}


def test_every_path_is_expanded_and_nothing_else(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.setenv('DATA', '/disk/data')
    monkeypatch.setenv('SRC', 'llama')
    config = {
        'save_folder': '~/runs/{run_name}',
        'load_path': '$DATA/ck.pt',
        'model': {'pretrained_model_name_or_path': '${DATA}/$SRC', 'attn_implementation': 'sdpa'},
        'tokenizer': {'name': 'org/name'},
        'train_loader': {'dataset': {'local': '~/prune', 'domains': {'web': {'local': '~/web'}}}},
        'eval_loaders': [{'dataset': {'streams': {'one': {'remote': '$DATA/eval'}}}}],
        'callbacks': {
            'export_pruned': {'folder': '~/out'},
            'hf_checkpointer': {'save_folder': '~/hf'},
            'dynamic_batch_loading': {'reference_losses': '~/ref.json', 'weights_file': '~/w.json'},
        },
        'loggers': {'metrics_file': {'path': '~/m.jsonl'}},
        'variables': {'work': '~/kept'},
        'profiler': {'torch_prof_folder': '~/prof'},
        'eval_gauntlet_str': '~/g.yaml',
        'run_name': 'a~',
    }
    expand_paths(config)
    assert config == {
        'save_folder': '/home/me/runs/{run_name}',
        'load_path': '/disk/data/ck.pt',
        'model': {'pretrained_model_name_or_path': '/disk/data/llama', 'attn_implementation': 'sdpa'},
        'tokenizer': {'name': 'org/name'},
        'train_loader': {'dataset': {'local': '/home/me/prune', 'domains': {'web': {'local': '/home/me/web'}}}},
        'eval_loaders': [{'dataset': {'streams': {'one': {'remote': '/disk/data/eval'}}}}],
        'callbacks': {
            'export_pruned': {'folder': '/home/me/out'},
            'hf_checkpointer': {'save_folder': '/home/me/hf'},
            'dynamic_batch_loading': {'reference_losses': '/home/me/ref.json', 'weights_file': '/home/me/w.json'},
        },
        'loggers': {'metrics_file': {'path': '/home/me/m.jsonl'}},
        'variables': {'work': '~/kept'},
        'profiler': {'torch_prof_folder': '/home/me/prof'},
        'eval_gauntlet_str': '/home/me/g.yaml',
        'run_name': 'a~',
    }


@pytest.mark.parametrize(
    'place',
    [
        'profiler.torch_prof_folder',
        'eval_gauntlet_str',
        'tokenizer.kwargs.cache_dir',
        'tokenizer.kwargs.vocab_file',
        'callbacks.memory_snapshot.remote_file_name',
        'train_loader.dataset.hf_kwargs.data_dir',
        'train_loader.dataset.hf_kwargs.cache_dir',
        'train_loader.dataset.hf_kwargs.data_files.train',
    ],
)
def test_paths_of_other_libraries_are_expanded(place, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    config = nested(place, '~/x')
    expand_paths(config)
    assert config == nested(place, '/home/me/x')


@pytest.mark.parametrize('place', ['run_name', 'model.peft_config.base', 'callbacks.a.license', 'save_filename'])
@pytest.mark.parametrize('value', ['~', '~/x'])
def test_a_home_folder_where_no_path_is(place, value):
    with pytest.raises(ValueError, match=f"{place}: '{value}' would be taken with its ~, .* write the whole path"):
        expand_paths(nested(place, value))
    expand_paths({'callbacks': {'generate_callback': {'prompts': [value]}}, 'metadata': {'a': value}, 'run_name': '~x'})


def test_a_variable_that_is_not_set_is_refused_with_its_place():
    with pytest.raises(ValueError, match="callbacks.export_pruned.folder.*'NO_SUCH_PLACE'"):
        expand_paths({'callbacks': {'export_pruned': {'folder': '$NO_SUCH_PLACE/out'}}})


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'save_filename': 'ba{bacth}.pt'}, "unknown field 'bacth'. Did you mean 'batch'"),
        ({'save_filename': 'ba{batch.pt'}, 'no name with fields in braces'),
        ({'run_name': '../../x'}, "run_name: '../../x' leads out of the folders"),
        ({'save_filename': '../ba{batch}.pt'}, 'leads out of save_folder'),
        ({'save_filename': '/tmp/ba{batch}.pt'}, 'leads out of save_folder'),
        ({'save_latest_filename': 'latest-{batch}'}, "unknown field 'batch'"),
        ({'save_latest_filename': 'a/../../latest'}, 'leads out of save_folder'),
        ({'save_folder': 'runs/{name}'}, "unknown field 'name'. Did you mean 'run_name'"),
        (
            {'callbacks': {'hf_checkpointer': {'huggingface_folder_name': '../final'}}},
            'huggingface_folder_name: .* leads out of its save_folder',
        ),
        ({'callbacks': {'hf_checkpointer': {'huggingface_folder_name': 'ba{x}'}}}, "unknown field 'x'"),
        ({'save_folder': 'runs/my run #1/c'}, "save_folder: of .* would take 'runs/my run ' alone, .* without"),
        ({'load_path': 's3://b/what?/x.pt'}, "load_path: of .* would take '/what' alone"),
        ({'callbacks': {'hf_checkpointer': {'save_folder': 'a;b'}}}, "hf_checkpointer.save_folder: .* 'a' alone"),
        (SAVED | {'save_filename': 'x.pt'}, "save_filename: 'x.pt' is .* Write 'x-ba{batch}.pt'"),
        (SAVED | {'save_filename': 'a/ep{epoch}-rank{rank}.pt'}, "Write 'a/ep{epoch}-rank{rank}-ba{batch}.pt'"),
        (SAVED | {'save_filename': 'ba{batch_in_epoch}.pt'}, 'save_num_checkpoints_to_keep: 2 would delete the newest'),
    ],
)
def test_names_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        check_names({**BASE, **settings})


def test_usual_names_pass():
    check_names({**BASE, 'save_filename': 'ep{epoch}/ba{batch}-rank{rank}.pt', 'save_folder': 's3://b/{run_name}'})
    check_names({**BASE, 'callbacks': {'hf_checkpointer': {'huggingface_folder_name': 'ba{batch}'}}})


@pytest.mark.parametrize(
    'settings',
    [
        {'save_filename': 'ba{batch}.pt'},
        {'save_filename': 'ep{epoch}-ba{batch_in_epoch}.pt'},
        {'save_filename': '{token}.pt'},
        {'save_filename': 'x.pt', 'save_num_checkpoints_to_keep': -1},
        {'save_filename': 'x.pt', 'save_folder': None},
        {'save_filename': 'x.pt', 'fsdp_config': {'state_dict_type': 'sharded'}},
    ],
)
def test_names_that_tell_checkpoints_apart_pass(settings):
    check_names({**BASE, **SAVED, **settings})
