"""The demo's pruning run as llm-foundry hands it on, and how tests change it."""

import copy
from pathlib import Path

YAML = Path(__file__).parents[2] / 'yamls' / 'demo' / 'prune.yaml'
TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}


def changed(config, path, value):
    config = copy.deepcopy(config)
    *parents, last = path.split('.') if isinstance(path, str) else [path]
    place = config
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return config
