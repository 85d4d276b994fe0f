"""``make yamls`` writes the YAMLs of real runs, prune/* and continue/*, by the template of ``llmshearing init``.

Here stands what each of them chooses; what they share is in ``llmshearing/recipes``. The paper's settings are kept
where they are not what ``init`` would choose: the micro-batches, the mixture of RedPajama and an evaluation of 0.42 of
the compute of pruning. A test compares the files with what this writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmshearing.masks.scores import RECOMMENDED_SCORES
from llmshearing.recipes.recipe import Recipe, render
from llmshearing.recipes.rules import PAPER_TOKENS, make_schedule
from llmshearing.utils.files import write_atomically

__all__ = ['texts']

ROOT = Path(__file__).parent
DOMAINS = ('cc', 'github', 'book', 'stackexchange', 'wiki', 'arxiv', 'c4')
REDPAJAMA = dict(zip(DOMAINS, (0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15)))
PREDICTED = {
    '1.3b': dict(zip(DOMAINS, (1.964, 0.746, 2.139, 1.612, 1.759, 1.445, 2.125))),
    '2.7b': dict(zip(DOMAINS, (1.871, 0.688, 2.033, 1.535, 1.63, 1.356, 2.033))),
}
REFERENCES = '${variables.work}/reference_losses.json'
SOURCE_NOTES = {
    'llama2': 'Hugging Face name or folder; the _rotated twin of this file names a rotated one, string',
    'pythia': 'Hugging Face name or folder of the source model, string',
}
ROTATED_NOTE = 'folder that `llmshearing rotate` wrote, see above, string'
HEADS = 'int; head_dim stays {}'

PAPER_HEADER = """\
Stage 1: prune LLaMA2-7B to the shape of {shape}.

Reproduces: Sheared LLaMA (arXiv 2310.06694), Table 7: 3,200 steps of 32 x 4096 tokens (0.42B), masks and
            multipliers at a learning rate of 1.0, weights at 1e-4, sparsity warm-up of 640 steps, evaluation every
            50 steps.
Hardware:   8 GPUs of 80 GB.
Time:       the paper's runs took about 7.8 hours (0.42B tokens at 15K tokens/s on 8 A100) with masked full-size
            steps; ours cuts the weights instead. Not measured on GPUs by us (`llmshearing plan` counts FLOPs and
            memory, not time).
{result}
Command:    composer -n 8 llmshearing/train.py yamls/{name}
            (or: FSDP_VERSION=2 composer -n 8 -c llmfoundry train ...; several nodes: jobs/README.md)"""
TWIN_HEADER = """\
Stage 1: prune a rotated LLaMA2-7B to the shape of {shape}.

Reproduces: nothing published; prune/llama2_7b_to_{size}.yaml with the source in the basis of its principal directions,
            in which the hidden dimensions that go carry least. Nothing else differs.
Hardware:   8 GPUs of 80 GB.
Time:       as its twin's. Not measured on GPUs by us. Result: not known for this source; what rotation is worth on a
            small one is in benchmarks/README.md.
Before:     llmshearing rotate FOLDER_OF_LLAMA2_7B --data redpajama-mds/prune --keep {keep} \\
              --output runs/llama2_7b_rotated
Command:    composer -n 8 llmshearing/train.py yamls/{name}
            (or: FSDP_VERSION=2 composer -n 8 -c llmfoundry train ...; several nodes: jobs/README.md)"""
PAPER_RESULT = """\
Result:     a model that must be trained further. After 50B more tokens (yamls/continue/llama2_{size}.yaml) the paper
            reports an average of {score} over its downstream tasks."""
UNKNOWN_RESULT = """\
Result:     not stated in the paper.
References: the paper gives no reference losses for this size. Either predict them from three or more models of one
            family, or take the source model's own, which works about as well (Appendix B):
            llmshearing reference-losses measure --help"""
FAMILY_HEADER = """\
Stage 1: prune {title}.

Reproduces: nothing published; steps, batches and rates of Sheared LLaMA (arXiv 2310.06694, Table 7) on another family,
            with the masks that were best where we measured (benchmarks/README.md) instead of the paper's.
Size:       {size}.
Shape:      {shape}
Hardware:   {hardware}
Time:       not measured on GPUs by us (`llmshearing plan` counts FLOPs and memory, not time). Result: not known.
Before:     data prepared with this model's tokenizer:
              llmshearing prepare yamls/data/redpajama.yaml tokenizer=NAME max_seq_len={length} --out FOLDER
            and reference losses, here the source model's own on the evaluation splits (Appendix B of the paper):
              llmshearing reference-losses measure --help
{rotation}Command:    composer -n 8 llmshearing/train.py yamls/{name}
            (or: FSDP_VERSION=2 composer -n 8 -c llmfoundry train ...; several nodes: jobs/README.md)
After:      composer -n 8 llmshearing/train.py yamls/continue/llama2_2.7b.yaml variables.work=... variables.data=...
            callbacks.dynamic_batch_loading.reference_losses=.../reference_losses.json{after}"""
ROTATION = """\
            and {source} in a basis in which its last hidden dimensions carry least:
              llmshearing rotate FOLDER_OF_SOURCE --data DATA/prune --keep {keep} --output {folder}
"""
CONTINUE_HEADER = """\
Stage 2: continue pre-training the pruned {model} model while the mixture follows the domains' losses.

Reproduces: Sheared LLaMA (arXiv 2310.06694), Table 7: 51,200 steps of 256 x 4096 tokens (53.7B), learning rate 1e-4
            with 3 % warm-up, evaluation every 400 steps.
Hardware:   16 GPUs of 80 GB, two nodes of 8 (jobs/slurm_continue.sh).
{result}
After:      the Hugging Face folder is runs/.../continued/huggingface/final; evaluate it with yamls/eval, tune it
            with yamls/finetune. Model card and licence are in it.
Command:    on each node: composer -n 8 --world_size 16 --node_rank RANK --master_addr FIRST_NODE \\
              --master_port 29400 llmshearing/train.py yamls/{name}"""

# size: (its shape in words, layers, hidden, heads, intermediate; the paper's average)
LLAMA2 = {
    '2.7b': ('Sheared-LLaMA-2.7B (2.70B parameters)', 32, 2560, 20, 6912, '56.7'),
    '1.3b': ('Sheared-LLaMA-1.3B (1.35B parameters)', 24, 2048, 16, 5504, '51.0'),
    '370m': ('the 370M model that the authors also made (373,867,520 parameters)', 24, 1024, 8, 2816, None),
}
LAYERS = {'layer': RECOMMENDED_SCORES['layer']}
WIDTHS = {axis: RECOMMENDED_SCORES[axis] for axis in ('hidden', 'head', 'intermediate')}
GQA_WIDTHS = {
    'hidden_size': (3072, 'int'),
    'num_attention_heads': (24, HEADS.format(128)),
    'num_key_value_heads': (8, 'int; all stay, and 3 of the 4 query heads of each'),
    'intermediate_size': (8192, 'int'),
}
FAMILIES = {
    'llama3.1_8b_to_3b': dict(
        title='Llama-3.1-8B to about 3B',
        source='meta-llama/Llama-3.1-8B',
        size='3.21B parameters, of which 0.79B are embedding and LM head (vocabulary 128,256)',
        shape='the widths of Llama-3.2-3B. All 8 KV heads stay, so tensor parallelism and the cache keep their '
        'layout;\n            three of the four query heads of each stay.',
        of='32 layers, 4096, 32 heads, 8 KV heads, 14336',
        target={'num_hidden_layers': (24, 'int'), **GQA_WIDTHS},
        scores=LAYERS | WIDTHS,
    ),
    'mistral_7b_to_3b': dict(
        title='Mistral-7B-v0.3 to about 3B',
        source='mistralai/Mistral-7B-v0.3',
        size='3.02B parameters',
        shape='28 of 32 layers and three quarters of the width. All 8 KV heads stay, with three of their four query\n'
        '            heads each.',
        of='32 layers, 4096, 32 heads, 8 KV heads, 14336',
        target={'num_hidden_layers': (28, 'int'), **GQA_WIDTHS},
        scores=LAYERS | WIDTHS,
    ),
    'qwen2.5_7b_to_3b': dict(
        title='Qwen2.5-7B to about 3B',
        source='Qwen/Qwen2.5-7B',
        size='3.03B parameters, of which 0.62B are embedding and LM head (vocabulary 152,064)',
        shape='all 28 layers stay, the width goes down to that of Qwen2.5-3B. All 4 KV heads stay, with four of their\n'
        '            seven query heads each; the biases of q, k and v are cut with them.',
        of='28 layers, 3584, 28 heads, 4 KV heads, 18944',
        target={
            'num_hidden_layers': (28, 'int; all stay'),
            'hidden_size': (2048, 'int'),
            'num_attention_heads': (16, HEADS.format(128)),
            'num_key_value_heads': (4, 'int; all stay, and 4 of the 7 query heads of each'),
            'intermediate_size': (12288, 'int'),
        },
        scores=WIDTHS,
    ),
    'pythia_410m_to_160m': dict(
        title='Pythia-410M to the shape of Pythia-160M',
        source='EleutherAI/pythia-410m',
        size='162M parameters',
        shape="Pythia-160M's own, as in the paper's Appendix F.5. This family has no head_dim of its own, so\n"
        '            hidden_size is heads x 64.',
        of='24 layers, 1024, 16 heads, 4096',
        target={
            'num_hidden_layers': (12, 'int'),
            'hidden_size': (768, 'int'),
            'num_attention_heads': (12, HEADS.format(64)),
            'intermediate_size': (3072, 'int'),
        },
        scores=LAYERS | WIDTHS,
        hardware='1 GPU of 24 GB or more is enough; with fewer than 8 give `-n`.',
        length=2048,
        rotates=False,
        settings=dict(
            micro_batch=4,
            checkpointing=False,
            attention='sdpa',
            attention_note='sdpa or flash_attention_2',
            source_note=SOURCE_NOTES['pythia'],
        ),
    ),
}
MICRO_BATCHES = {'2.7b': 4, '1.3b': 8, '370m': 16}  # of continued pre-training on 16 GPUs
PAPER_TIME = "Time:       the paper's took about {} on 16 A100). Not measured on GPUs by us.\n"
CONTINUE_RESULTS = {
    '2.7b': PAPER_TIME.format('194 hours (53.7B tokens at 77K tokens/s')
    + "Result:     an average of 56.7 over the paper's downstream tasks.",
    '1.3b': PAPER_TIME.format('103 hours (53.7B tokens at 145K tokens/s')
    + "Result:     an average of 51.0 over the paper's downstream tasks. Its dynamic loading used these "
    'shares of the data:\n'
    '            cc 0.361, github 0.008, book 0.091, stackexchange 0.010, wiki 0.031, arxiv 0.007, c4 0.492.',
    '370m': 'Time:       not stated in the paper for this size, not measured on GPUs by us (`llmshearing plan` '
    'counts FLOPs and\n            memory, not time).\n'
    'Result:     not stated in the paper.',
}


def _commented(text: str) -> str:
    return '\n'.join(f'# {line}'.rstrip() for line in text.split('\n'))


def _references(size: str | None, note: str) -> dict:
    if size in PREDICTED:
        label = f'{size[:-1]}{size[-1].upper()}'
        note = f'loss to aim at per domain: what the paper predicts for a LLaMA2 of {label}, floats'
        return {'reference_losses': PREDICTED[size], 'references_note': note}
    return {'references': REFERENCES, 'references_note': note}


def _prune(name: str, header: str, work: str, source: str, target: dict, of: str, length: int, **settings) -> str:
    same = dict(
        source_note=ROTATED_NOTE,
        data_note='output of `llmshearing prepare yamls/data/redpajama.yaml` for this tokenizer, string',
        proportions_note="first mixture: RedPajama's proportions, floats",
        max_eval_share=0.5,
        max_eval_share_note="warn when evaluation takes more; the paper's settings take 0.42 of the compute, float",
        micro_batch=2,
    )
    recipe = Recipe(
        stage='prune',
        header=_commented(header),
        work=f'runs/{work}',
        source=source,
        data='redpajama-mds',
        max_seq_len=length,
        target=target,
        target_note=f'shape to reach; what is left out stays as in the source ({of})',
        domains=DOMAINS,
        proportions=REDPAJAMA,
        schedule=make_schedule('prune', PAPER_TOKENS['prune'] // 4096 * length, length, 8, len(DOMAINS)),
        run_name=name.replace('_', '-'),
        **{**same, **settings},
    )
    return render(recipe)


def _prune_llama2(name: str, size: str, rotated: bool = False) -> str:
    shape, layers, hidden, heads, intermediate, score = LLAMA2[size]
    result = PAPER_RESULT.format(size=size, score=score) if score else UNKNOWN_RESULT
    target = {
        'num_hidden_layers': (layers, 'int'),
        'hidden_size': (hidden, 'int'),
        'num_attention_heads': (heads, HEADS.format(128)),
        'intermediate_size': (intermediate, 'int'),
    }
    words = dict(shape=shape, result=result, name=f'prune/{name}.yaml', size=size, keep=hidden)
    return _prune(
        name,
        (TWIN_HEADER if rotated else PAPER_HEADER).format(**words),
        f'llama2_{size}{"_rotated" * rotated}',
        'runs/llama2_7b_rotated' if rotated else 'meta-llama/Llama-2-7b-hf',
        target,
        '32 layers, 4096, 32 heads, 11008',
        4096,
        source_note=ROTATED_NOTE if rotated else SOURCE_NOTES['llama2'],
        **_references(size, 'written by `llmshearing reference-losses`, see above, string'),
    )


def _prune_family(name: str, family: dict) -> str:
    length, keep = family.get('length', 4096), family['target']['hidden_size'][0]
    source, rotation = family['source'], ''
    if family.get('rotates', True):
        folder = f'runs/{name.split("_to_")[0]}_rotated'
        source, rotation = folder, ROTATION.format(source=source, keep=keep, folder=folder)
    header = FAMILY_HEADER.format(
        title=family['title'],
        size=family['size'],
        shape=family['shape'],
        hardware=family.get('hardware', '8 GPUs of 80 GB.'),
        length=length,
        rotation=rotation,
        after='' if length == 4096 else f' max_seq_len={length}',
        name=f'prune/{name}.yaml',
    )
    work = f'{name.split("_")[0]}_{name.split("_to_")[1]}'
    references = _references(None, 'written by `llmshearing reference-losses`, see above, string')
    settings = {**references, 'scores': family['scores'], **family.get('settings', {})}
    return _prune(name, header, work, source, family['target'], family['of'], length, **settings)


def _continue(name: str, size: str) -> str:
    model = f'{size[:-1]}{size[-1].upper()}'
    recipe = Recipe(
        stage='continue',
        header=_commented(
            CONTINUE_HEADER.format(model=model, result=CONTINUE_RESULTS[size], name=f'continue/{name}.yaml')
        ),
        work=f'runs/{name}',
        data='redpajama-mds',
        data_note='output of `llmshearing prepare yamls/data/redpajama.yaml`, string',
        max_seq_len=4096,
        domains=DOMAINS,
        schedule=make_schedule('continue', PAPER_TOKENS['continue'], 4096, 16, len(DOMAINS)),
        micro_batch=MICRO_BATCHES[size],
        run_name=name.replace('_', '-'),
        **_references(size, 'the file of the pruning stage, string'),
    )
    return render(recipe)


def texts() -> dict[str, str]:
    """The text of every file by its path below ``yamls``."""
    made = {f'prune/llama2_7b_to_{size}.yaml': _prune_llama2(f'llama2_7b_to_{size}', size) for size in LLAMA2}
    made |= {
        f'prune/llama2_7b_to_{size}_rotated.yaml': _prune_llama2(f'llama2_7b_to_{size}_rotated', size, rotated=True)
        for size in LLAMA2
    }
    made |= {f'prune/{name}.yaml': _prune_family(name, family) for name, family in FAMILIES.items()}
    return made | {f'continue/llama2_{size}.yaml': _continue(f'llama2_{size}', size) for size in LLAMA2}


if __name__ == '__main__':
    for path, text in texts().items():
        write_atomically(ROOT / path, text)
        sys.stdout.write(f'yamls/{path}\n')
