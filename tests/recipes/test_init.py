"""``llmshearing init``: both files load, pass the checks of their runs, train; what it cannot do is one sentence."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from llmfoundry.command_utils import train
from omegaconf import OmegaConf
from transformers import AutoConfig

from llmshearing import cli
from llmshearing.commands.init import main
from llmshearing.data.mds import read_tokens
from llmshearing.metrics.lines import read_metrics
from llmshearing.models.counting import layout_of, training_flops_per_token
from llmshearing.models.shapes import shape_of
from llmshearing.models.targets import target_shape
from llmshearing.recipes import request
from llmshearing.recipes.command_lines import override
from tests.models.tiny import LLAMA2_7B
from tests.tiny_data import DOMAINS, tiny_data
from tests.tiny_run import tiny_source

TARGET = ('--target', 'num_hidden_layers=3', 'hidden_size=36', 'num_key_value_heads=1', 'intermediate_size=40')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp('init')
    tiny_source(world / 'source')
    tiny_data(world)
    (world / 'references.json').write_text(json.dumps({'reference_losses': dict.fromkeys(DOMAINS, 1.0)}))
    (world / 'large').mkdir()
    (world / 'large' / 'config.json').write_text(json.dumps(LLAMA2_7B))
    return world


def run(world, tmp_path, *more, source='source', target=TARGET, gpus=0):
    arguments = [str(world / source), *target, '--data', str(world / 'data'), '--output', str(tmp_path / 'out')]
    arguments += ['--work', str(tmp_path / 'work'), '--gpus', str(gpus)]
    assert main([*arguments, *map(str, more)]) == 0
    return [OmegaConf.load(tmp_path / 'out' / f'{stage}.yaml') for stage in ('prune', 'continue')]


def train_here(config):
    """Trains as the file says, without processes for loading; so few steps are not enough to converge."""
    config.callbacks.export_pruned.allow_unconverged = True
    for loader in [config.train_loader, *config.eval_loader]:
        loader.num_workers, loader.prefetch_factor, loader.persistent_workers = 0, None, False
    train(config).close()


def test_both_files_are_filled_and_every_key_has_a_comment(world, tmp_path, capsys):
    prune, proceed = run(world, tmp_path)
    samples = {
        name: entry['splits']['prune']['samples']
        for name, entry in json.loads((world / 'data' / 'manifest.json').read_text())['domains'].items()
    }
    whole = sum(samples.values())
    shares = prune.train_loader.dataset.proportions
    assert list(shares) == list(samples) and sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert all(shares[name] == pytest.approx(count / whole, rel=1e-3) for name, count in samples.items())
    steps = int(prune.max_duration.removesuffix('ba'))
    assert whole / 32 - prune.train_loader.dataset.round_batches < steps <= whole / 32  # one pass by default
    assert prune.eval_interval == f'{prune.train_loader.dataset.round_batches}ba'
    for config in (prune, proceed):
        rounds = 3 * config.train_loader.dataset.round_batches * config.global_train_batch_size
        evaluated = len(DOMAINS) * config.callbacks.dynamic_batch_loading.max_eval_sequences
        assert evaluated / (evaluated + rounds) <= 0.1
    assert (prune.precision, prune.fsdp_config, prune.model.init_device) == ('fp32', None, 'cpu')
    assert (prune.console_log_interval, proceed.console_log_interval) == ('10ba', proceed.max_duration)
    assert prune.optimizer.lr == proceed.optimizer.lr == 1e-4
    pruning = prune.algorithms.targeted_pruning
    assert (pruning.mask_learning, 'learning_rate' in pruning) == ('progressive', False)
    widths = dict.fromkeys(('hidden', 'kv_group', 'intermediate'), 'activation')
    assert pruning.scores == {'layer': 'block_importance', **widths}
    assert proceed.model.pretrained_model_name_or_path == prune.callbacks.export_pruned.folder
    assert proceed.train_loader.dataset.proportions == prune.callbacks.dynamic_batch_loading.weights_file
    for stage in ('prune', 'continue'):
        text = (tmp_path / 'out' / f'{stage}.yaml').read_text()
        assert '# Hardware:' in text and f'out/{stage}.yaml' in text
        for line in text[text.index('\n\n') :].splitlines():
            entry = re.match(r'\s*(?:- )*([A-Za-z_][\w.-]*):\s*([^#]*)', line)
            if entry and entry[2] and not entry[2].startswith('{') and entry[1] not in (*DOMAINS, 'label'):
                assert '#' in line, line
    out = capsys.readouterr().out
    assert 'target: 27,108 parameters' in out and 'reference-losses measure' in out and 'rotate' in out
    counts = {config.callbacks.dynamic_batch_loading.max_eval_sequences for config in (prune, proceed)}
    assert f'--max-sequences {counts.pop()} ' in out and not counts, 'references are of what both stages evaluate'
    assert f'/prune.yaml variables.source={tmp_path}/work/rotated\n' in out, 'what was rotated is what is pruned'
    assert out.rstrip().endswith(f'llmshearing train -n 1 {tmp_path}/out/continue.yaml')


@pytest.mark.parametrize('path', ['runs/rotated', "my: model, #1 'x'/rotated", 'a b/[c]', '1.5', 'no', '1e3', '7e5'])
def test_an_override_survives_shell_and_yaml(path):
    (word,) = shlex.split(override('variables.source', path))
    assert OmegaConf.from_dotlist([word]).variables.source == path


def test_the_pruning_run_trains(world, tmp_path, capfd):
    config, _ = run(world, tmp_path, '--prune-tokens', 4 * 512, '--reference-losses', world / 'references.json')
    assert config.max_duration == '4ba'
    train_here(config)
    shape = json.loads((tmp_path / 'work' / 'pruned' / 'config.json').read_text())
    assert (shape['num_hidden_layers'], shape['hidden_size'], shape['intermediate_size']) == (3, 36, 40)
    assert json.loads((tmp_path / 'work' / 'mixture.json').read_text())['proportions'].keys() == set(DOMAINS)


def test_the_source_teaches_in_both_stages_where_it_shall(world, tmp_path, capsys):
    prune, proceed = run(world, tmp_path, '--teacher', 'source')
    for config in (prune, proceed):
        assert config.variables.source == config.algorithms.distillation.teacher == str(world / 'source')
        assert config.algorithms.distillation.weight == 1.0
    (factor,) = {float(each) for each in re.findall(r'a step computes ([\d.]+) times', capsys.readouterr().out)}
    tiny = AutoConfig.from_pretrained(world / 'source')
    asked = dict(pair.split('=') for pair in TARGET[1:])
    shapes = shape_of(tiny), target_shape(tiny, {key: int(value) for key, value in asked.items()})
    source, target = (training_flops_per_token(layout_of(tiny), shape, prune.max_seq_len) for shape in shapes)
    assert factor == pytest.approx(1 + source / 3 / target, abs=0.006)
    assert 'times what it would without\n' in (tmp_path / 'out' / 'prune.yaml').read_text()
    for config in run(world, tmp_path, '--overwrite'):
        assert 'distillation' not in config.algorithms
    assert 'eacher' not in (tmp_path / 'out' / 'prune.yaml').read_text() + capsys.readouterr().out
    assert 'source' not in config.variables


def test_a_source_that_is_rotated_is_not_rotated_again(world, tmp_path, capsys):
    source = shutil.copytree(world / 'source', tmp_path / 'turned')
    run(world, tmp_path, source=source)
    assert 'llmshearing rotate' in capsys.readouterr().out
    (source / 'rotation.json').write_text('{}')
    config = run(world, tmp_path, '--overwrite', source=source)[0]
    assert config.algorithms.targeted_pruning.scores.hidden == 'activation'
    assert 'rotate' not in capsys.readouterr().out.replace(str(tmp_path), '')
    assert 'the rotated one' not in (tmp_path / 'out' / 'prune.yaml').read_text()
    (source / 'rotation.json').write_text('{"learned": {"steps": 30}}')
    config = run(world, tmp_path, '--overwrite', source=source)[0]
    assert config.algorithms.targeted_pruning.scores.hidden == 'position'


def test_a_stored_teacher_is_told_of_and_trains(world, tmp_path, capsys):
    settings = ('--prune-tokens', 4 * 512, '--reference-losses', world / 'references.json', '--teacher', 'stored')
    config, proceed = run(world, tmp_path, *settings)
    (command,) = re.findall(r'^  llmshearing (teach .*)$', capsys.readouterr().out, re.M)
    assert cli.main(command.split()) == 0
    for each in (config, proceed):
        assert each.algorithms.distillation.stored and each.variables.data == str(tmp_path / 'work' / 'taught')
    train_here(config)
    metrics = read_metrics(tmp_path / 'work' / 'prune_metrics.jsonl')
    assert len(metrics['loss/train/distillation']) == 4
    capsys.readouterr()
    taught = str(tmp_path / 'work' / 'taught')
    settings = *settings, '--data', taught, '--overwrite', '--work', tmp_path / 'again'
    again = run(world, tmp_path, *settings)  # is not taught once more
    assert [each.variables.data for each in again] == [taught, taught]
    assert 'llmshearing teach' not in capsys.readouterr().out
    assert 'Teacher:    source teaches, by what is stored of it' in (tmp_path / 'out' / 'prune.yaml').read_text()
    shutil.rmtree(Path(taught, 'continue'))
    shutil.copytree(world / 'data' / 'continue', Path(taught, 'continue'))
    with pytest.raises(ValueError, match="'continue/.*' has no teacher's column"):
        run(world, tmp_path, *settings)


def test_a_real_source_on_several_gpus_from_its_config_alone(world, tmp_path, capsys):
    prune, proceed = run(world, tmp_path, source='large', target=('--target', 'params=1.3B'), gpus=16)
    assert 'no tokenizer beside its config' in capsys.readouterr().out
    for config in (prune, proceed):
        assert (config.precision, config.model.init_device) == ('amp_bf16', 'mixed')
        assert config.fsdp_config.state_dict_type == 'sharded'
        evaluated = config.callbacks.dynamic_batch_loading.max_eval_sequences
        assert evaluated % (16 * config.device_eval_batch_size) == 0, 'whole batches'
        assert config.global_train_batch_size % (16 * config.device_train_microbatch_size) == 0
    assert '--world_size 16' in (tmp_path / 'out' / 'prune.yaml').read_text()


@pytest.mark.parametrize('family, attention', [('gemma2', 'eager'), ('qwen3', 'sdpa')])
def test_both_stages_compute_the_attention_that_the_source_asks_for(world, tmp_path, family, attention):
    tiny_source(tmp_path / family, family)
    target = ('--target', 'num_hidden_layers=3')
    for config in run(tmp_path, tmp_path, '--data', world / 'data', source=family, target=target):
        assert config.model.attn_implementation == attention


def test_sequences_that_are_not_there_are_no_compute(world, tmp_path, capsys):
    there = {name: len(list(read_tokens(world / 'data' / 'eval' / name))) for name in DOMAINS}
    gpus = 8  # of micro-batches of 8, which would evaluate 64 at once
    assert gpus <= min(there.values()) and max(there.values()) < 64
    prune, _ = run(world, tmp_path, gpus=gpus)
    evaluated = len(DOMAINS) * max(there.values())
    share = evaluated / (evaluated + 3 * prune.train_loader.dataset.round_batches * prune.global_train_batch_size)
    assert f'evaluation is {share:.1%} of the compute' in re.search('^prune: .*', capsys.readouterr().out, re.M)[0]


def test_reference_losses_of_each_kind(world, tmp_path):
    file = world / 'references.json'
    prune, _ = run(world, tmp_path, '--reference-losses', file, '--overwrite')
    assert prune.callbacks.dynamic_batch_loading.reference_losses == str(file)
    prune, proceed = run(world, tmp_path, '--reference-losses', 'none', '--overwrite')
    for config in (prune, proceed):
        assert config.callbacks.dynamic_batch_loading['update'] == 'constant'
        assert 'reference_losses' not in config.callbacks.dynamic_batch_loading
    run(world, tmp_path, '--reference-losses', 'law', '--overwrite')
    header = (tmp_path / 'out' / 'prune.yaml').read_text()
    assert f'measure MODEL_1 MODEL_2 MODEL_3 --data {world}/data --max-sequences ' in header
    assert 'reference-losses fit POINTS.json --params 27108 --output' in header


REFUSED = [
    (('--data', '{world}/text'), 'no manifest.json there'),
    (('--gpus', '-1'), '--gpus -1: give the number of GPUs'),
    (('--tokens', '100'), '--tokens: 100 tokens are less than 1 step of 256 x 16 tokens; give at least 4,096'),
    (('--prune-tokens', '600'), '600 tokens are less than 2 steps of 32 x 16 tokens; give at least 1,024'),
    (('--gpus', '128', '--gpu-memory', '80'), r'--gpus 128: the domain \'\w+\' has \d+ evaluation sequences'),
    (('--tokens', '1B'), r'--tokens: .* passes over the .* more than --max-passes 4'),
    (('--max-passes', 'nan'), '--max-passes: expected a number above 0, got nan'),
    (('--prune-tokens', '10M'), r'--prune-tokens: .* passes'),
    (('--reference-losses', 'nowhere.json'), 'no such file; give source, law, none or a file'),
    (('--reference-losses', '{world}/data/manifest.json'), 'it has no loss for python'),
    (('--target', 'vocab=3'), 'vocab'),
    (('--gpus', '1', '--gpu-memory', '0.0001'), '--gpu-memory 1'),
    (('--output', '{world}/references.json'), 'expected a folder'),
]


@pytest.mark.parametrize('more, message', REFUSED)
def test_bad_input_is_a_sentence_and_nothing_is_written(world, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        run(world, tmp_path, *(text.format(world=world) for text in more))
    assert not (tmp_path / 'out').exists()


def test_a_target_that_cannot_be(world, tmp_path):
    for target, message in (('hidden_size=64', "larger than the source's 48"), ('hidden_size=48', 'nothing would be')):
        with pytest.raises(ValueError, match=message):
            run(world, tmp_path, target=('--target', target))


def test_a_source_of_a_type_without_a_table(world, tmp_path):
    (tmp_path / 'gpt2').mkdir()
    (tmp_path / 'gpt2' / 'config.json').write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="'gpt2'.*not supported"):
        run(world, tmp_path, source=tmp_path / 'gpt2')
    assert not (tmp_path / 'out').exists()


def test_a_name_that_cannot_be_had(monkeypatch):
    def fail(*arguments):
        raise ValueError('SOURCE: no\n  such name.')

    monkeypatch.setattr(request, 'read_config_at', fail)
    with pytest.raises(ValueError, match='^SOURCE: no such name. Give a folder with its config.json instead'):
        main(['no/such', *TARGET, '--data', 'data', '--gpus', '8'])


def test_sequences_longer_than_the_source(world, tmp_path):
    shutil.copytree(world / 'source', tmp_path / 'short')
    path = tmp_path / 'short' / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'max_position_embeddings': 8}))
    with pytest.raises(ValueError, match='sequences of 16 tokens are longer than the 8 positions'):
        run(world, tmp_path, source=tmp_path / 'short')


def test_another_tokenizer(world, tmp_path):
    shutil.copytree(world / 'source', tmp_path / 'other')
    path = tmp_path / 'other' / 'tokenizer.json'
    content = json.loads(path.read_text())
    vocabulary = content['model']['vocab']
    vocabulary['w1'], vocabulary['w2'] = vocabulary['w2'], vocabulary['w1']
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='was made with another tokenizer'):
        run(world, tmp_path, source=tmp_path / 'other')


def test_files_are_replaced_only_on_request(world, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'continue.yaml').write_text('mine\n')
    with pytest.raises(ValueError, match='has continue.yaml already; give another folder, or --overwrite'):
        run(world, tmp_path)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['continue.yaml']
    run(world, tmp_path, '--overwrite')
    assert (tmp_path / 'out' / 'continue.yaml').read_text().startswith('# Stage 2')


@pytest.mark.parametrize('left_out', ['--target', '--data', '--gpus'])
def test_what_it_cannot_know_it_asks_for(left_out, tmp_path, capsys):
    given = {'--target': 'params=1M', '--data': str(tmp_path), '--gpus': '8'}
    del given[left_out]
    assert cli.main(['init', str(tmp_path), *(word for pair in given.items() for word in pair)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'llmshearing init: {left_out} says') and error.count('\n') == 1


def test_a_folder_with_odd_names_stays_one_value(world, tmp_path):
    shutil.copytree(world / 'data', tmp_path / 'data: #1')
    prune, _ = run(world, tmp_path, '--data', tmp_path / 'data: #1')
    assert prune.variables.data == str(tmp_path / 'data: #1')
    assert Path(prune.eval_loader[1].dataset.local).is_dir()


def test_a_mixture_keeps_the_experts_that_its_target_says(world, tmp_path):
    tiny_source(world / 'mixture', 'mixtral')
    target = ('--target', 'num_local_experts=4', 'hidden_size=40')
    prune, _ = run(world, tmp_path, source='mixture', target=target)
    target = prune.algorithms.targeted_pruning.target
    assert (target.num_experts, target.hidden_size, target.intermediate_size) == (4, 40, 64)
    assert 'num_experts_per_tok' not in target
    pruning = prune.algorithms.targeted_pruning
    assert (pruning.mask_learning, pruning.scores) == ('progressive', {'hidden': 'activation', 'expert': 'reap'})
    prune, _ = run(world, tmp_path / 'width', source='mixture', target=('--target', 'intermediate_size=32'))
    assert prune.algorithms.targeted_pruning.scores == {'intermediate': 'activation'}
