"""What one environment does for :mod:`tests.across.test_across`: it writes for the other, or reads what that wrote.

usage: side.py write FOLDER | open EXPORTS OUT | resume THEIRS FOLDER

``write`` exports a tiny model of every variant that both stacks have, runs both stages to their ends with a checkpoint
after each batch, and prunes a mixture of experts. ``open`` opens such exports with transformers alone: nothing of this
package is imported.
``resume`` goes on from the checkpoints after ``STOP`` batches, and exports that of the mixture.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

IDS = torch.randint(3, 97, (2, 21), generator=torch.Generator().manual_seed(4))
TEXT = 'w3 w17 w90 w5'
STOP = 4  # in the middle of a mixing round, and of the warm-up
# name: stage, settings of tests.runs.stages.build
RUNS = {
    'prune': ('prune', {}),
    'prune, sharded': ('prune', {'fsdp': {'state_dict_type': 'sharded'}}),
    'continue': ('continue', {}),
}


def write(folder: Path) -> None:
    """Writes ``exports/VARIANT``, the logits of the masked models that they are of, ``world`` and ``runs/NAME``."""
    from llmshearing.algorithms.targeted_pruning import TargetedPruning
    from llmshearing.export.model import export_model
    from llmshearing.models.cuttable import Cutter
    from tests.export.checkpoints import pruning_checkpoint
    from tests.export.cut_folder import AXES, uniform_soft_masks
    from tests.models.tiny import AXES_OF, NEWER, ROTARY, VARIANTS, rotary_model
    from tests.runs.stages import finish, make_world
    from tests.tiny_run import tiny_tokenizer

    logits = {}
    for variant in (name for name in (*VARIANTS, *ROTARY) if name not in NEWER):
        model = rotary_model(variant)
        cutter = Cutter(model)
        cutter.set_masks(uniform_soft_masks(model.config, AXES_OF.get(variant, AXES)))
        with torch.no_grad():
            logits[variant] = model(IDS, use_cache=False).logits
        export_model(cutter, folder / 'exports' / variant, tiny_tokenizer())
    torch.save(logits, folder / 'masked')
    world = make_world(folder / 'world')
    for name, (stage, settings) in RUNS.items():
        finish(stage, world, folder / 'runs' / name, **settings)
    target = {'num_hidden_layers': 3, 'hidden_size': 32, 'intermediate_size': 40, 'num_experts': 4}
    pruning_checkpoint(folder / 'mixture', variant='mixtral', pruning=TargetedPruning(target, warmup='3ba'))


def open_exports(exports: Path, out: Path) -> None:
    """Saves what each export says to ``IDS``, how its tokenizer reads ``TEXT``, and what was missing or left over."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = {}
    for folder in sorted(exports.iterdir()):
        model, problems = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        with torch.no_grad():
            logits = model.eval()(IDS, use_cache=False).logits
        tokens = AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
        found[folder.name] = {
            'logits': logits,
            'tokens': tokens,
            'dtype': str(model.dtype),
            'problems': [key for key, value in problems.items() if value],
        }
    assert not [name for name in sys.modules if name.startswith('llmshearing')]
    torch.save(found, out)


def resume(theirs: Path, folder: Path) -> None:
    """Goes on with each of the other's runs, to ``NAME``, and exports its mixture, or notes why that cannot be."""
    from llmshearing.checkpoints.source import read_weights
    from llmshearing.export.job import export_checkpoint
    from llmshearing.export.settings import ExportSettings
    from llmshearing.models.source_config import read_config
    from tests.runs.stages import finish
    from tests.runs.test_elastic import saved

    for name, (stage, settings) in RUNS.items():
        checkpoint = saved(theirs / 'runs' / name, STOP, sharded='fsdp' in settings)
        finish(stage, theirs / 'world', folder / name, load_path=checkpoint, **settings)
    exported, found = folder / 'mixture', {}
    try:
        export_checkpoint(theirs / 'mixture' / 'checkpoints' / 'ba6.pt', exported, ExportSettings(progress=False))
        for place in (exported, theirs / 'mixture' / 'pruned'):
            weights = read_weights(place, read_config(place))
            found[place.name] = {name: weight.read() for name, weight in weights.items()}
    except ValueError as error:
        found['refused'] = str(error)
    torch.save(found, folder / 'weights of the mixture')


if __name__ == '__main__':
    {'write': write, 'open': open_exports, 'resume': resume}[sys.argv[1]](*map(Path, sys.argv[2:]))
