"""``llmshearing plan``: its lines, its JSON, its warnings, and what it refuses. Everything from a config.json alone."""

import dataclasses
import json
import re

import pytest
from omegaconf import OmegaConf
from transformers import LlavaConfig, MistralConfig, MllamaConfig

from llmshearing import cli
from llmshearing.commands.arguments import parse_target
from llmshearing.commands.plan import main
from llmshearing.config.source import read_source
from llmshearing.models.counting import layout_of
from llmshearing.models.shapes import ModelShape
from llmshearing.planning.memory import TrainingSetup
from llmshearing.planning.plan import make_plan, shape_warnings
from llmshearing.planning.vocabulary import with_vocabulary
from tests.models.tiny import LLAMA2_7B, tiny_model

WHOLE, SHEARED = ModelShape(32, 4096, 32, 32, 11008, 128), ModelShape(24, 2048, 16, 16, 5504, 128)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp('source')
    (folder / 'config.json').write_text(json.dumps(LLAMA2_7B))
    return folder


def printed(capsys, *argv):
    assert main([str(argument) for argument in argv]) == 0
    return capsys.readouterr().out.splitlines()


def cells(lines, label):
    (line,) = (line for line in lines if line.strip().startswith(label))
    return line.strip().removeprefix(label).split()


def test_rotation_is_advised_unless_the_source_is_rotated(source, capsys, tmp_path):
    advice = 'llmshearing rotate SOURCE --data DATA --output ROTATED --keep 2048'
    rotated = tmp_path / 'rotated'
    rotated.mkdir()
    (rotated / 'config.json').write_text((source / 'config.json').read_text())
    for record, expected in ((False, True), (True, False)):
        if record:
            (rotated / 'rotation.json').write_text('{}')
        for named in (rotated, rotated / 'config.json'):
            lines = printed(capsys, named, '--target', 'hidden_size=2048')
            assert any(advice in line for line in lines) == expected, named


def test_source_and_target_side_by_side(source, capsys, tmp_path):
    out = tmp_path / 'new' / 'plan.json'  # in a folder that is not there yet
    lines = printed(capsys, source, '--params', '1.35e9', '--target', 'num_hidden_layers=24', '--json', out)
    assert cells(lines, 'hidden_size') == ['4,096', '2,048', '50.0%']
    assert cells(lines, 'num_hidden_layers') == ['32', '24', '75.0%']
    assert cells(lines, 'parameters  ') == ['6,738,415,616', '1,345,423,360', '20.0%']
    assert cells(lines, 'without embeddings') == ['6,476,271,616', '1,214,351,360', '18.8%']
    assert cells(lines, 'size in bfloat16') == ['13.48', 'GB', '2.69', 'GB', '20.0%']
    flops = 6 * (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000) + 12 * 32 * 4096 * 4096
    assert cells(lines, 'training FLOPs per token')[0] == f'{flops / 1e9:.2f}'
    assert cells(lines, 'KV cache per token')[:3] == ['524,288', 'bytes', '196,608']
    assert '  layer         keeps     24 of     32, removes  25.0%  whole decoder layers' in lines
    assert '  head          keeps     16 of     32, removes  50.0%  in every layer' in lines
    assert 'memory per GPU: 8 x fsdp2, amp_bf16, micro-batch 4 x 4096 tokens, activation checkpointing off' in lines
    assert cells(lines, 'optimizer states') == [f'{8 * n / 8 / 2**30:.2f}' for n in (6738415616, 1345423360)]

    plan = json.loads(out.read_text())
    assert plan['target']['shape'] == {
        'num_hidden_layers': 24,
        'hidden_size': 2048,
        'num_attention_heads': 16,
        'num_key_value_heads': 16,
        'intermediate_size': 5504,
        'head_dim': 128,
    }
    for stage, label in (('pruning', 0), ('continued pre-training', 1)):
        parts = plan['memory'][stage]
        assert parts['total'] == sum(value for key, value in parts.items() if key != 'total')
        assert cells(lines, 'total')[label] == f'{parts["total"] / 2**30:.2f}'
    stages = [stage for stage in plan['memory'] if plan['memory'][stage]['total'] > 80 * 2**30]
    warned = [line.split(' takes more')[0].strip(' -') for line in lines if 'takes more than' in line]
    assert warned == stages == ['pruning']


def test_the_cache_of_sliding_windows_is_told_apart(capsys, tmp_path):
    for variant, per_token in (('gemma3_text', ('192', '48', '25.0%')), ('mistral', ('0', '0'))):
        config = tiny_model(variant).config
        config.save_pretrained(tmp_path / variant)
        lines = printed(capsys, tmp_path / variant, '--target', 'num_hidden_layers=2', 'num_key_value_heads=1')
        source = make_plan(config, None, TrainingSetup())['source']
        assert [cell for cell in cells(lines, 'KV cache per token') if cell != 'bytes'] == list(per_token)
        assert cells(lines, 'of sliding windows')[0] == f'{source["kv_cache_window_bytes"] / 1000:.2f}'
        assert any('layers without a sliding window' in line for line in lines)


def test_a_source_with_fewer_tokens(source, capsys):
    tokens = ('--target', 'vocab_size=16000', '--micro-batch', '1', '--seq-len', '64')
    lines = printed(capsys, source, *tokens)
    parameters, left = 6738415616, 6738415616 - 2 * 16000 * 4096
    assert cells(lines, 'parameters  ') == [f'{parameters:,}', f'{left:,}', f'{left / parameters:.1%}']
    assert cells(lines, 'vocab_size  ') == ['32,000', '16,000', '50.0%']
    assert 'trim-vocab SOURCE --data TEXT --size 16000 ' in lines[-1] and '16,000 of its 32,000 tokens' in lines[-1]
    budget = ('--params', '1.35e9', '--target', 'num_hidden_layers=24', '--micro-batch', '1', '--seq-len', '64')
    (whole, trimmed) = (printed(capsys, source, *budget, *more) for more in ((), tokens[:2]))
    assert int(cells(trimmed, 'intermediate_size')[1].replace(',', '')) > int(
        cells(whole, 'intermediate_size')[1].replace(',', '')
    )
    for size, possible in (('0', '1 to 32000'), ('32001', '1 to 32000'), ('0.5', 'a whole number')):
        with pytest.raises(ValueError, match=f'vocab_size={size} is not possible.*{possible}'):
            main([str(source), '--target', f'vocab_size={size}'])


def test_what_has_to_be_made_a_source_first_is_planned_from_its_config(tmp_path, capsys):
    few = ('--target', 'num_hidden_layers=2', '--micro-batch', '1', '--seq-len', '64')
    text = MistralConfig(num_hidden_layers=4, hidden_size=256, intermediate_size=512, vocab_size=1000)
    text.save_pretrained(tmp_path / 'text')
    LlavaConfig(text_config=text).save_pretrained(tmp_path / 'whole')
    lines = printed(capsys, tmp_path / 'whole', *few)
    *plain, note = printed(capsys, tmp_path / 'text', *few)
    assert [line for line in lines if line in plain] == plain and note in lines
    assert any('multimodal model (llava): only its text part' in line and 'text-part SOURCE' in line for line in lines)
    quantised = {**LLAMA2_7B, 'quantization_config': {'quant_method': 'gptq', 'bits': 4}}
    (tmp_path / 'config.json').write_text(json.dumps(quantised))
    lines = printed(capsys, tmp_path, *few)
    assert cells(lines, 'parameters  ')[0] == '6,738,415,616'
    assert any('has quantised weights (gptq)' in line and 'use the model that it was quantised from' for line in lines)
    MllamaConfig().save_pretrained(tmp_path / 'mllama')
    with pytest.raises(ValueError, match='and its text part, .* is not supported'):
        main([str(tmp_path / 'mllama')])


def test_special_tokens_that_are_trimmed_away_are_not_planned_with():
    config = tiny_model('llama').config
    config.pad_token_id, config.eos_token_id = 96, 3
    smaller = with_vocabulary(config, 50)
    assert (smaller.vocab_size, smaller.pad_token_id, smaller.eos_token_id) == (50, None, 3)
    assert (config.vocab_size, config.pad_token_id) == (97, 96)


def test_columns_line_up(source, capsys):
    lines = printed(capsys, source / 'config.json', '--size', '2.5GB', '--seq-len', '64', '--micro-batch', '1')
    table = lines[: lines.index('')]
    assert len({len(line) for line in table[:-1]}) == 1
    memory = [line for line in lines if line.startswith('  GiB') or line.split()[-1:] and line.startswith('  total')]
    assert len({len(line) for line in memory}) == 1


def test_a_source_alone(source, capsys):
    setup = ['--gpus', '1', '--seq-len', '64', '--micro-batch', '1', '--precision', 'fp32', '--sharding', 'ddp']
    lines = printed(capsys, source, *setup)
    assert cells(lines, 'hidden_size') == ['4,096']
    assert cells(lines, 'gradients') == [f'{4 * 6738415616 / 2**30:.2f}']
    assert 'cut, per axis' not in lines
    assert 'memory per GPU: 1 x ddp, fp32, micro-batch 1 x 64 tokens, activation checkpointing off' in lines


def test_a_run_names_source_target_and_settings(source, capsys, tmp_path):
    run = {
        'max_seq_len': 128,
        'model': {'pretrained_model_name_or_path': '${folder}'},
        'folder': str(source),
        'algorithms': {'targeted_pruning': {'target': {'fraction': {'hidden_size': 0.5}, 'num_hidden_layers': 24}}},
        'device_train_microbatch_size': 2,
        'precision': 'amp_bf16',
        'fsdp_config': {'activation_checkpointing': True},
    }
    path = tmp_path / 'run.yaml'
    OmegaConf.save(OmegaConf.create(run), path)
    lines = printed(capsys, '--config', path, '--gpus', '4')
    assert cells(lines, 'hidden_size') == ['4,096', '2,048', '50.0%']
    assert 'memory per GPU: 4 x fsdp2, amp_bf16, micro-batch 2 x 128 tokens, activation checkpointing on' in lines
    other = ['--micro-batch', '1', '--no-activation-checkpointing', '--sharding', 'ddp']
    lines = printed(capsys, '--config', path, *other)
    assert 'memory per GPU: 8 x ddp, amp_bf16, micro-batch 1 x 128 tokens, activation checkpointing off' in lines
    del run['algorithms']
    OmegaConf.save(OmegaConf.create(run), path)
    with pytest.raises(ValueError, match='has no algorithms.targeted_pruning.target'):
        main(['--config', str(path)])


def test_a_runs_teacher_and_frozen_weights_are_in_its_memory(source, capsys, tmp_path):
    tiny_model('mistral').config.save_pretrained(tmp_path / 'small')
    pruning = {'target': {'num_hidden_layers': 24}}
    run = {
        'max_seq_len': 128,
        'model': {'pretrained_model_name_or_path': 'org/seven'},
        'algorithms': {'targeted_pruning': pruning, 'distillation': {'teacher': 'org/seven'}},
        'device_train_microbatch_size': 2,
        'fsdp_config': {'activation_cpu_offload': True},
    }

    def plan(*argv):
        OmegaConf.save(OmegaConf.create(run), tmp_path / 'run.yaml')
        lines = printed(capsys, source, '--config', tmp_path / 'run.yaml', '--json', tmp_path / 'plan.json', *argv)
        return lines, json.loads((tmp_path / 'plan.json').read_text())

    whole = 6_738_415_616
    lines, taught = plan('--gpus', '4')
    assert cells(lines, 'weights of the teacher') == [f'{2 * whole / 4 / 2**30:.2f}', '0.00']
    assert any(line.endswith(f'take up to {2 * 128 * 32000 * 2 / 2**30:.2f} GiB each.') for line in lines)
    assert 'activation_cpu_offload: activations are counted as if they stayed on the GPU.' in lines
    assert plan('--sharding', 'ddp', '--precision', 'fp32')[1]['memory']['pruning']['teacher'] == 4 * whole
    run['algorithms']['distillation']['teacher'] = str(tmp_path / 'small')
    assert 0 < plan()[1]['memory']['pruning']['teacher'] < 2**20
    run['algorithms']['distillation']['teacher'] = 'org/eight'
    lines, _ = plan()
    assert not [line for line in lines if 'weights of the teacher' in line]
    assert [line for line in lines if line.startswith('distillation: the teacher is not counted: org/eight: no model')]

    assert not [line for line in lines if 'compensation' in line]
    pruning['compensate'] = True
    pruning['target'] = {'hidden_size': 2048, 'intermediate_size': 5504, 'num_attention_heads': 16}
    want = 4 * 32 * (3 * 4096**2 + 11008**2) + 4 * 4096**2  # what q and gate read, o, down; and the LM head
    assert cells(plan()[0], 'sums for compensation') == [f'{want / 2**30:.2f}', '0.00']
    pruning['mask_learning'] = 'one_shot'  # compensates one layer at a time, before there are gradients
    assert not [line for line in plan()[0] if 'compensation' in line]
    pruning['target'] = {'num_hidden_layers': 24}
    del pruning['compensate'], pruning['mask_learning']

    del run['algorithms']['distillation'], run['fsdp_config']['activation_cpu_offload']
    run['fsdp_config']['state_dict_type'] = 'sharded'
    trained, _ = plan('--gpus', '4')[1], pruning.update(freeze_weights=True)
    lines, frozen = plan('--gpus', '4')
    assert all(note.startswith('guidance') for note in trained['notes'])
    assert any(line.startswith('freeze_weights: ') for line in lines)
    before, after = trained['memory'], frozen['memory']
    assert taught['memory']['pruning']['total'] - before['pruning']['total'] == 2 * whole // 4
    assert after['continued pre-training'] == before['continued pre-training']
    assert after['pruning']['gradients'] == after['pruning']['optimizer_states'] == 0
    assert 2 * after['pruning']['communication'] == before['pruning']['communication']
    assert before['pruning']['total'] - after['pruning']['total'] == 3 * whole + after['pruning']['communication']
    ddp = plan('--gpus', '4', '--sharding', 'ddp')[1]['memory']
    assert ddp['pruning']['communication'] == 0 < ddp['continued pre-training']['communication']


@pytest.mark.parametrize(
    'content, message',
    [
        (
            'algorithms: {targeted_pruning: {target: 3}}',
            r'algorithms.targeted_pruning.target must be a mapping .*, got 3',
        ),
        (
            'algorithms: [targeted_pruning]',
            r"algorithms must be a mapping of keys to values, got \['targeted_pruning'\]",
        ),
        ('algorithms: {targeted_pruning: on}', 'algorithms.targeted_pruning must be a mapping .*, got True'),
        ('algorithms: {targeted_pruning: {target: {}}}', 'has no algorithms.targeted_pruning.target'),
        ('[1, 2]', 'must be a mapping of keys to values, got list'),
        ('3', ': Invalid loaded object type: int'),
        ('algorithms: {targeted_pruning: {target: {params: 1e9}}}\nmodel: a', "model must be a mapping .*, got 'a'"),
        ('algorithms: {targeted_pruning: {target: {params: 1e9}}}\nfsdp_config: full', 'fsdp_config must be a mapping'),
        (
            'algorithms: {targeted_pruning: {target: {params: 1e9}}}\nmodel: {pretrained_model_name_or_path: 7}',
            'model.pretrained_model_name_or_path must be a path, got 7',
        ),
        (
            'algorithms: {targeted_pruning: {target: {params: 1e9}}}\nfsdp_config: {activation_checkpointing: "no"}',
            "fsdp_config.activation_checkpointing must be true or false, without quotes, got 'no'",
        ),
        (
            'algorithms: {targeted_pruning: {freeze_weights: 1, target: {params: 1e9}}}',
            'freeze_weights must be .*, got 1',
        ),
        (
            'algorithms: {distillation: yes, targeted_pruning: {target: {params: 1e9}}}',
            'algorithms.distillation must be a',
        ),
    ],
)
def test_runs_that_are_none(tmp_path, content, message):
    (tmp_path / 'run.yaml').write_text(content)
    with pytest.raises(ValueError, match=f'--config: .*run.yaml.*{message}'):
        main(['--config', str(tmp_path / 'run.yaml')])


def test_keys_and_values_become_a_target():
    fractions = ['fraction.num_hidden_layers=0.5', 'fraction.hidden_size=1']
    items = ['hidden_size=2048', 'params=1.3e9', 'size=2.5GB', *fractions]
    assert parse_target(items) == {
        'hidden_size': 2048,
        'params': 1.3e9,
        'size': '2.5GB',
        'fraction': {'num_hidden_layers': 0.5, 'hidden_size': 1},
    }


@pytest.mark.parametrize(
    'argv, message',
    [
        (['--target', 'hidden_size'], "expected KEY=VALUE, .* got 'hidden_size'"),
        (['--target', 'hidden_size=1', 'hidden_size=2'], "each key once, got 'hidden_size=2'"),
        (
            ['--target', 'fraction=1', 'fraction.hidden_size=0.5'],
            'fraction=1 names no size; keep only .*hidden_size=0.5',
        ),
        (['--target', 'fraction.hidden_size=0.5', 'fraction=1'], 'fraction=1 names no size'),
        (['--target', 'params=1e9', '--params', '2e9'], 'params is given twice'),
        (['--config', 'run.yaml', '--params', '1e9'], 'leave out the other options of the target'),
        (['--config', 'no_such.yaml'], 'no_such.yaml: no such file'),
        (['--gpus', '0', '--precision', 'fp8'], "gpus=0: must be .*\n.*precision='fp8'"),
        (['--target', 'hidden_size=5000'], "hidden_size=5000 is larger than the source's 4096"),
        (['--params', '1.3e9', '--multiple-of', '0'], 'multiple_of=0'),
    ],
)
def test_wrong_usage_is_refused(source, argv, message):
    with pytest.raises(ValueError, match=message):
        main([str(source), *argv])


def test_sources_that_are_none(tmp_path, capsys):
    with pytest.raises(ValueError, match='name a SOURCE'):
        main([])
    assert cli.main(['plan', str(tmp_path / 'nothing'), '--params', '1e9']) == 1
    error = capsys.readouterr().err
    assert error.startswith('llmshearing plan: ') and 'download the config first' in error and error.count('\n') == 1
    phimoe = '{"model_type": "phimoe"}'
    for content, message in (
        ('{', 'config.json is not JSON'),
        (phimoe, "'phimoe'.*not supported"),
        ('[1, 2]', 'config.json: expected a JSON object, got a list'),
        (json.dumps({**LLAMA2_7B, 'hidden_size': 'x'}), "config.json: hidden_size must be a whole .*, got 'x'"),
        (json.dumps({**LLAMA2_7B, 'num_attention_heads': 0}), 'num_attention_heads must be a whole .*, got 0'),
        (json.dumps({**LLAMA2_7B, 'max_position_embeddings': '4k'}), "max_position_embeddings must be .*, got '4k'"),
        (json.dumps({**LLAMA2_7B, 'rope_scaling': 'linear'}), "rope_scaling: 'linear'; expected a mapping"),
        ('{}', 'config.json is no Hugging Face config: its model_type is None'),
    ):
        (tmp_path / 'config.json').write_text(content)
        with pytest.raises(ValueError, match=message):
            main([str(tmp_path)])


def warnings_of(source, **sizes):
    layout = layout_of(read_source(str(source)))
    return '\n'.join(shape_warnings(WHOLE, dataclasses.replace(SHEARED, **sizes), layout))


@pytest.mark.parametrize(
    'sizes, message',
    [
        ({'hidden_size': 2001}, 'hidden_size=2001 is no multiple of 8: tensor cores .*; nearest: 1984 or 2048'),
        (
            {'intermediate_size': 5512},
            'intermediate_size=5512 is no multiple of 64: slower on GPUs; nearest: 5504 or 5568',
        ),
        ({'head_dim': 100}, 'head_dim=100 is no multiple of 8'),
        ({'num_attention_heads': 15, 'num_key_value_heads': 15}, 'num_attention_heads=15, num_key_value_heads=15: odd'),
        ({'num_attention_heads': 30, 'num_key_value_heads': 15}, '^num_key_value_heads=15: odd numbers of heads'),
        ({'num_hidden_layers': 4}, "num_hidden_layers=4 keeps 12% of the source's 32"),
        ({'intermediate_size': 2752, 'num_hidden_layers': 31}, 'intermediate_size keeps 25% and num_hidden_layers 97%'),
    ],
)
def test_warnings(source, sizes, message):
    assert re.search(message, warnings_of(source, **sizes))


def test_the_papers_shape_has_no_warning(source):
    assert warnings_of(source) == ''


def test_warnings_of_the_run(source):
    plan = make_plan(read_source(str(source)), WHOLE, TrainingSetup(1, 'ddp', 1, 4097))
    listed = '\n'.join(plan['warnings'])
    assert 'there is nothing to prune' in listed and "seq_len=4097 is more than the source's 4096 positions" in listed
    assert 'pruning takes more than a GPU of 80 GiB has; try activation checkpointing.' in listed
    assert plan['cut'] == {}


@pytest.mark.parametrize('variant', ['qwen2', 'gemma3_text', 'phi3', 'gpt_neox'])
def test_every_kind_of_family_can_be_planned(variant, tmp_path, capsys):
    tiny_model(variant).config.save_pretrained(tmp_path)
    halves = ['fraction.hidden_size=0.5', 'fraction.num_hidden_layers=0.5', 'multiple_of=8']
    lines = printed(capsys, tmp_path, '--target', *halves, '--seq-len', 32, '--gpus', 2)
    assert cells(lines, 'hidden_size')[:2] == ['48', '24']
    assert cells(lines, 'num_hidden_layers')[:2] == ['4', '2']
