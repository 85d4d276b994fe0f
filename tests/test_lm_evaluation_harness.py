"""lm-evaluation-harness on our results: the paper's task list is one it knows, and a local task runs on a tiny
model."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from llmshearing.export.model_folder import open_strictly
from tests.test_yamls import load
from tests.tiny_run import tiny_source, tiny_tokenizer

lm_eval = pytest.importorskip('lm_eval', reason='the extra eval is not installed')
FOLDER = Path(__file__).parents[1] / 'yamls' / 'eval' / 'lm_evaluation_harness'


def test_the_group_is_the_papers_list_and_the_harness_knows_all_of_it():
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(FOLDER))
    assert 'sheared_llama' in manager.all_groups
    group = yaml.safe_load((FOLDER / 'sheared_llama.yaml').read_text())
    shots = {entry['task']: entry['num_fewshot'] for entry in group['task']}
    unknown = set(shots) - set(manager.all_tasks)
    assert not unknown
    names = {'lambada_openai': 'lambada', 'nq_open': 'natural_questions'}
    ours = {task.label: task.num_fewshot[0] for task in load('eval/paper_tasks.yaml').icl_tasks}
    assert {names.get(name, name): number for name, number in shots.items()} == ours


def test_a_local_task_runs_on_an_exported_folder(tmp_path):
    tiny_source(tmp_path / 'model')
    rows = [{'text': f'w{i} w{i + 1}', 'choices': [f'w{i + 2}', f'w{i + 40}'], 'gold': 0} for i in range(1, 17)]
    (tmp_path / 'questions.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (tmp_path / 'tasks').mkdir()
    (tmp_path / 'tasks' / 'next_word.yaml').write_text(
        yaml.safe_dump(
            {
                'task': 'next_word',
                'dataset_path': 'json',
                'dataset_kwargs': {
                    'data_files': {'test': str(tmp_path / 'questions.jsonl')},
                    'cache_dir': str(tmp_path / 'cache'),
                },
                'output_type': 'multiple_choice',
                'test_split': 'test',
                'doc_to_text': '{{text}}',
                'doc_to_choice': '{{choices}}',
                'doc_to_target': '{{gold}}',
            }
        )
    )
    results = lm_eval.simple_evaluate(
        model='hf',
        model_args={'pretrained': str(tmp_path / 'model'), 'dtype': 'float32'},
        tasks=['next_word'],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path / 'tasks')),
        device='cpu',
        batch_size=4,
        bootstrap_iters=0,
    )
    model, tokenizer = open_strictly(tmp_path / 'model'), tiny_tokenizer()
    right = 0
    for row in rows:
        logits = model(torch.tensor([tokenizer.encode(row['text'])])).logits[0, -1]
        first, second = (logits[tokenizer.convert_tokens_to_ids(choice)] for choice in row['choices'])
        right += bool(first > second)
    assert 0 < right < len(rows) and results['results']['next_word']['acc,none'] == right / len(rows)
