"""Every shipped YAML:
commented, with a header, a target that its source can be cut to, and two steps on shrunken shapes."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from composer.utils.parallelism import FSDP2Config
from llmfoundry.command_utils import evaluate, train
from omegaconf import OmegaConf
from transformers import AutoConfig, GPTNeoXConfig, LlamaConfig, MistralConfig, Qwen2Config

from llmshearing.checkpoints.parameter_shapes import parameter_shapes
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.data.instruct import PROMPT, first_round
from llmshearing.export.model_folder import open_strictly
from llmshearing.metrics.lines import read_metrics
from llmshearing.models.families import family_of
from llmshearing.models.shapes import resolve_target, shape_of, with_shape
from tests.tiny_data import tiny_data
from tests.tiny_run import tiny_source

ROOT = Path(__file__).parents[1]
YAMLS = sorted(path.relative_to(ROOT / 'yamls').as_posix() for path in (ROOT / 'yamls').rglob('*.yaml'))
PRUNE = [name for name in YAMLS if name.startswith('prune/')]
CONTINUE = [name for name in YAMLS if name.startswith('continue/')]
DOMAINS = ('cc', 'github', 'book', 'stackexchange', 'wiki', 'arxiv', 'c4')

# Configs of the real sources, written out so that no network is needed; the number is the target's parameters.
LLAMA2 = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)
GQA = dict(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
)
SOURCES = {
    'prune/llama2_7b_to_2.7b.yaml': (LLAMA2, 2_702_284_800),
    'prune/llama2_7b_to_1.3b.yaml': (LLAMA2, 1_345_423_360),
    'prune/llama2_7b_to_370m.yaml': (LLAMA2, 373_867_520),
    'prune/llama3.1_8b_to_3b.yaml': (LlamaConfig(vocab_size=128256, **GQA), 3_205_672_960),
    'prune/mistral_7b_to_3b.yaml': (MistralConfig(vocab_size=32768, head_dim=128, **GQA), 3_020_000_000),
    'prune/qwen2.5_7b_to_3b.yaml': (
        Qwen2Config(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
        ),
        3_030_000_000,
    ),
    'prune/pythia_410m_to_160m.yaml': (
        GPTNeoXConfig(
            vocab_size=50304, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
        ),
        162_322_944,
    ),
}
SOURCES |= {name.replace('.yaml', '_rotated.yaml'): SOURCES[name] for name in SOURCES if 'llama2' in name}
# The tiny source that stands in for each, and what its target keys become.
TINY = {
    'num_hidden_layers': 3,
    'hidden_size': 32,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'intermediate_size': 40,
}
VARIANTS = {
    'llama2': 'llama-mha',
    'llama3.1': 'llama-rope3',
    'mistral': 'mistral',
    # transformers 5 makes a tokenizer of its own in a qwen2 folder, and the run refuses it for the tests' data.
    'qwen2.5': 'llama-biases' if TRANSFORMERS_5 else 'qwen2',
    'pythia': 'gpt_neox',
}
STEPS = {
    'max_seq_len': 16,
    'max_duration': '2ba',
    'eval_interval': '2ba',
    'eval_subset_num_batches': 1,
    'global_train_batch_size': 4,
    'device_train_microbatch_size': 2,
    'device_eval_batch_size': 4,
    'precision': 'fp32',
    'fsdp_config': None,
    'python_log_level': 'warning',
    'log_to_console': False,
    'log_config': False,
}


def load(name):
    return OmegaConf.load(ROOT / 'yamls' / name)


@pytest.mark.parametrize(
    'name',
    [name for name in YAMLS if not name.startswith('data/')],  # tests/data looks after those
)
def test_every_key_has_a_comment_and_the_header_says_how_to_run_it(name):
    text = (ROOT / 'yamls' / name).read_text()
    header = text[: text.index('\n\n')]
    assert header.startswith('# ')
    assert f'yamls/{name}' in header, 'the header gives the exact command'
    assert '# Hardware:' in header
    seen = set(DOMAINS)
    for number, line in enumerate(text.splitlines(), 1):
        entry = re.match(r'\s*(?:- )*([A-Za-z_][\w.-]*):\s*([^#]*)', line)
        if entry is None or entry[1] in seen:
            continue
        is_section = not entry[2] or entry[2].startswith('{')
        assert is_section or '#' in line, f'{name}, line {number}: {entry[1]} has no comment'
        seen.add(entry[1])


def test_the_list_of_sources_is_complete():
    assert sorted(SOURCES) == PRUNE


@pytest.mark.parametrize('name', PRUNE)
def test_the_real_source_can_be_cut_to_the_target(name):
    config, parameters = SOURCES[name]
    family = family_of(config)
    settings = OmegaConf.to_container(load(name).algorithms.targeted_pruning.target)
    target = resolve_target(shape_of(config), settings, family.has_head_dim)
    assert {key: getattr(target, key) for key in settings} == settings
    shapes = parameter_shapes(with_shape(config, target, family.has_head_dim)).shapes
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == pytest.approx(parameters, rel=2e-3)


@pytest.mark.parametrize('name', [name for name in PRUNE if '\n# After: ' in (ROOT / 'yamls' / name).read_text()])
def test_the_command_that_follows_reads_the_same_data(name):
    after = (ROOT / 'yamls' / name).read_text().split('\n\n')[0].split('\n# After: ')[1]
    follows = load(re.search(r'yamls/(continue/\S+)', after)[1])
    given = OmegaConf.from_dotlist(re.findall(r'\bmax_seq_len=\d+', after))
    assert OmegaConf.merge(follows, given).max_seq_len == load(name).max_seq_len


@pytest.mark.parametrize('name', [name for name in YAMLS if 'round_batches' in (ROOT / 'yamls' / name).read_text()])
def test_every_mixture_has_a_cap_on_repetition(name):
    assert load(name).train_loader.dataset.max_passes == 4


def test_the_papers_numbers():
    references = {
        '2.7b': [1.871, 0.688, 2.033, 1.535, 1.630, 1.356, 2.033],
        '1.3b': [1.964, 0.746, 2.139, 1.612, 1.759, 1.445, 2.125],
    }
    for size in ('2.7b', '1.3b', '370m'):
        prune, proceed = load(f'prune/llama2_7b_to_{size}.yaml'), load(f'continue/llama2_{size}.yaml')
        twin = load(f'prune/llama2_7b_to_{size}_rotated.yaml')
        twin.variables, twin.run_name = prune.variables, prune.run_name
        assert twin == prune, 'the twin differs by its source alone'
        for config in (prune, proceed):
            assert (config.max_seq_len, config.optimizer.lr, config.scheduler.alpha_f) == (4096, 1e-4, 0.1)
            assert config.scheduler.name == 'cosine_with_warmup' and config.optimizer.betas == [0.9, 0.95]
            assert config.algorithms.gradient_clipping.clipping_threshold == 1.0
            assert (
                [loader.label for loader in config.eval_loader]
                == list(DOMAINS)
                == list(config.train_loader.dataset.domains)
            )
            if size in references:
                losses = config.callbacks.dynamic_batch_loading.reference_losses
                assert [losses[name] for name in DOMAINS] == references[size]
        pruning = prune.algorithms.targeted_pruning
        assert (prune.max_duration, prune.scheduler.t_warmup, prune.global_train_batch_size) == ('3200ba', '320ba', 32)
        assert (pruning.mask_learning, pruning.warmup) == ('lagrangian', '640ba')
        assert (pruning.learning_rate, pruning.multiplier_learning_rate) == (1.0, 1.0)
        assert prune.eval_interval == '50ba' and prune.train_loader.dataset.round_batches == 50
        assert [prune.train_loader.dataset.proportions[name] for name in DOMAINS] == [
            0.67,
            0.045,
            0.045,
            0.02,
            0.045,
            0.025,
            0.15,
        ]
        assert (proceed.max_duration, proceed.scheduler.t_warmup, proceed.global_train_batch_size) == (
            '51200ba',
            '0.03dur',
            256,
        )
        assert proceed.eval_interval == '400ba' and proceed.train_loader.dataset.round_batches == 400


@pytest.mark.parametrize('name', [*PRUNE, *CONTINUE, 'finetune/instruct.yaml'])
def test_fsdp_settings_are_ones_that_composer_knows(name):
    FSDP2Config(**load(name).fsdp_config)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A tiny source of each family, and one prepared data set: they share a tokenizer."""
    world = tmp_path_factory.mktemp('yamls')
    for family, variant in VARIANTS.items():
        tiny_source(world / family, variant)
    tiny_source(world / 'source')
    tiny_data(world, domains=DOMAINS, documents=80)
    (world / 'references.json').write_text(json.dumps({'reference_losses': dict.fromkeys(DOMAINS, 1.0)}))
    (world / 'mixture.json').write_text(json.dumps({'proportions': {name: 1 + i for i, name in enumerate(DOMAINS)}}))
    return world


def shrunk(name, world, work, **variables):
    """The YAML with a tiny source, two steps and one process."""
    config = OmegaConf.merge(load(name), STEPS)
    OmegaConf.update(config, 'variables', {'work': str(work), 'data': str(world / 'data'), **variables})
    if 'references' in config.variables:
        config.variables.references = str(world / 'references.json')
    config.model.attn_implementation, config.model.init_device = 'sdpa', 'cpu'  # mixed needs FSDP
    config.save_interval = '2ba'
    if 'round_batches' in config.train_loader.dataset:
        config.train_loader.dataset.round_batches = 2
    for loader in [config.train_loader, *config.get('eval_loader', [])]:
        loader.num_workers, loader.prefetch_factor, loader.persistent_workers = 0, None, False
    return config


@pytest.mark.parametrize('name', PRUNE)
def test_two_steps_of_pruning(name, world, tmp_path):
    family = Path(name).name.split('_')[0]
    config = shrunk(name, world, tmp_path, source=str(world / family))
    target = config.algorithms.targeted_pruning.target
    for key in target:
        target[key] = TINY[key]
    config.callbacks.export_pruned.allow_unconverged = True
    train(config).close()
    exported = open_strictly(tmp_path / 'pruned').config
    assert {key: getattr(exported, key) for key in target} == {key: TINY[key] for key in target}
    metrics = read_metrics(tmp_path / 'prune_metrics.jsonl')
    assert {f'mixture/weight/{domain}' for domain in DOMAINS} <= set(metrics) and 'pruning/hidden/expected' in metrics
    assert (tmp_path / 'mixture.json').is_file() and (tmp_path / 'prune_report' / 'report.html').is_file()
    assert list((tmp_path / 'prune_checkpoints').glob('*.pt'))


@pytest.mark.parametrize('name', CONTINUE)
def test_two_steps_of_continued_pretraining(name, world, tmp_path):
    (tmp_path / 'mixture.json').write_bytes((world / 'mixture.json').read_bytes())
    shutil.copytree(world / 'llama2', tmp_path / 'pruned')
    record = {'source_shape': dataclasses.asdict(shape_of(AutoConfig.from_pretrained(world / 'llama2')))}
    (tmp_path / 'pruned' / 'pruning.json').write_text(json.dumps(record))
    config = shrunk(name, world, tmp_path, model=str(tmp_path / 'pruned'))
    train(config).close()
    open_strictly(tmp_path / 'continued' / 'huggingface' / 'final')
    assert (tmp_path / 'continue_report' / 'report.html').is_file()
    weights = read_metrics(tmp_path / 'continue_metrics.jsonl')
    # as mixture.json says
    assert list(weights['mixture/weight/c4'].values())[-1] > list(weights['mixture/weight/cc'].values())[-1]


def test_two_steps_of_instruction_tuning(world, tmp_path):
    data = tmp_path / 'pairs'
    data.mkdir()
    rounds = [
        {'from': 'human', 'value': 'w1 w2'},
        {'from': 'gpt', 'value': 'w3 w4 w5'},
        {'from': 'human', 'value': 'w6'},
    ]
    (data / 'train.jsonl').write_text((json.dumps({'conversations': rounds}) + '\n') * 12)
    config = shrunk('finetune/instruct.yaml', world, tmp_path, model=str(world / 'llama2'), data=str(data))
    config.max_seq_len = 64
    train(config).close()
    open_strictly(tmp_path / 'huggingface' / 'final')
    losses = read_metrics(tmp_path / 'metrics.jsonl')['loss/train/total']
    assert len(losses) == 2 and all(0 < value < 10 for value in losses.values())


def test_the_first_round_of_a_conversation():
    human, gpt = {'from': 'human', 'value': 'Why?'}, {'from': 'gpt', 'value': 'Because.'}
    expected = {'prompt': PROMPT.format(input='Why?'), 'response': 'Because.'}
    assert PROMPT.startswith('You are a helpful assistant. Write a response that appropriately completes the request.')
    assert first_round({'conversations': [human, gpt, human, {**gpt, 'value': 'Again.'}]}) == expected
    assert first_round({'conversations': [{'from': 'system', 'value': 'Be kind.'}, human, gpt]}) == expected
    parts = [{'type': 'text', 'text': 'Wh'}, {'type': 'text', 'text': 'y?'}]
    assert (
        first_round({'prompt': None, 'response': None, 'conversations': [{**human, 'value': parts}, gpt]}) == expected
    )
    for content in (None, {'a': 1}):
        with pytest.raises(ValueError, match='expected text'):
            first_round({'conversations': [human, {**gpt, 'value': content}]})
    messages = [{'role': 'user', 'content': 'Why?'}, {'role': 'assistant', 'content': 'Because.'}]
    assert first_round({'messages': messages}) == first_round({'prompt': 'Why?', 'response': 'Because.'}) == expected
    with pytest.raises(ValueError, match="keys \\['text'\\]"):
        first_round({'text': 'Why?'})
    with pytest.raises(ValueError, match='no request that is followed by an answer'):
        first_round({'conversations': [gpt, human]})


def write_tasks(folder, config):
    """One file per task, of as many examples as the most shots need."""
    folder.mkdir()
    rows = {
        'multiple_choice': {'query': 'w1 w2', 'choices': ['w3', 'w4'], 'gold': 1, 'category': 'words'},
        'language_modeling': {'context': 'w1 w2', 'continuation': 'w3'},
        'schema': {'context_options': ['w1', 'w2'], 'continuation': 'w3', 'gold': 0},
        'generation_task_with_answers': {'context': 'w1', 'answer': 'w2', 'aliases': ['w3']},
    }
    for task in config.icl_tasks:
        path = Path(task.dataset_uri)
        path.write_text((json.dumps(rows[task.icl_task_type]) + '\n') * 36)


@pytest.mark.parametrize('name', ['eval/local_tasks.yaml', 'eval/paper_tasks.yaml'])
def test_evaluation_on_local_task_files(name, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(name)
    config.variables.model, config.variables.tasks = str(world / 'llama2'), str(tmp_path / 'tasks')
    config.max_seq_len, config.precision, config.device_eval_batch_size, config.icl_subset_num_batches = (
        100,
        'fp32',
        4,
        1,
    )
    write_tasks(tmp_path / 'tasks', config)
    trainers, _ = evaluate(config)
    for trainer in trainers:
        trainer.close()
    labels = {task.label for task in config.icl_tasks}
    assert labels == {label.split('/')[0] for label in trainers[0].state.eval_metrics}


def test_the_papers_tasks_and_shots():
    shots = {task.label: list(task.num_fewshot) for task in load('eval/paper_tasks.yaml').icl_tasks}
    zero = dict.fromkeys(('arc_easy', 'lambada', 'logiqa', 'piqa', 'sciq', 'winogrande'), [0])
    assert shots == {
        **zero,
        'hellaswag': [10],
        'arc_challenge': [25],
        'mmlu': [5],
        'boolq': [32],
        'natural_questions': [32],
    }
