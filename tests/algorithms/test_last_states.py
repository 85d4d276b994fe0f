"""The distance of last hidden states: by hand, under masks, after the cut, and what it refuses."""

import shutil

import pytest
import torch
from composer.loggers import InMemoryLogger
from llmfoundry.models.hf import ComposerHFCausalLM

from llmshearing.algorithms.distillation import Distillation
from llmshearing.algorithms.distillation.last_states import LastStates
from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.metrics.pruning_record import read_record
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.tiny_run import tiny_source, tiny_tokenizer, tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
IDS = torch.arange(1, 25).reshape(2, 12)
POSITIONS = torch.tensor([0, 3, 11, 20])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A source, the same in another basis (its dimensions in reverse), and what a short run cuts it to."""
    folder = tmp_path_factory.mktemp('last_states')
    tiny_source(folder / 'source')
    pruned(folder / 'source', folder / 'pruned', ())
    shutil.copytree(folder / 'source', folder / 'mirrored')
    model = stock(folder / 'source').model
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(tensor.flip(0 if name.endswith(('o_proj.weight', 'down_proj.weight')) else -1))
    model.save_pretrained(folder / 'mirrored')
    return folder


def stock(folder) -> ComposerHFCausalLM:
    return ComposerHFCausalLM(
        tokenizer=tiny_tokenizer(), pretrained_model_name_or_path=str(folder), use_train_metrics=False
    )


def pruned(source, output, algorithms):
    """Prunes for eight batches, writes the folder, and returns the logged parts of the loss."""
    log = InMemoryLogger()
    learner = TargetedPruning(TARGET, warmup='4ba', mask_learning='progressive')
    trainer = tiny_trainer(
        source,
        [learner, *algorithms],
        model=ShearedCausalLM(tiny_tokenizer(), str(source)),
        batches=8,
        loggers=[log],
        callbacks=[ExportPruned(str(output), allow_unconverged=True)],
    )
    trainer.fit()
    trainer.close()
    return {name.rpartition('/')[2]: [float(v) for _, v in log.data[name]] for name in log.data if 'loss/train' in name}


def last_states(model) -> torch.Tensor:
    """As transformers reports them, at POSITIONS."""
    return model(input_ids=IDS, output_hidden_states=True).hidden_states[-1].flatten(0, 1)[POSITIONS]


def test_the_distance_is_that_of_the_kept_dimensions(folder):
    student, teacher = stock(folder / 'pruned'), stock(folder / 'source').model
    kept = torch.tensor(read_record(folder / 'pruned').kept['hidden'])
    states = LastStates(student, teacher)
    with torch.no_grad():
        teacher(input_ids=IDS)
    student.model(input_ids=IDS)
    distance = states.distance(POSITIONS)
    h, g = last_states(student.model).double(), last_states(teacher)[:, kept].double()
    cosines = (h * g).sum(-1) / h.norm(dim=-1) / g.norm(dim=-1)
    assert len(kept) == 36 and 0.01 < distance.item() < 0.9
    assert distance.item() == pytest.approx(1 - cosines.mean().item(), abs=1e-6)
    distance.backward()
    assert student.model.get_parameter('model.norm.weight').grad.abs().max() > 0


def test_a_pruned_model_leaves_itself_and_the_parts_add_up(folder, tmp_path):
    source = folder / 'source'
    losses = pruned(source, tmp_path / 'out', [Distillation(str(source), weight=0.5, hidden_weight=2.0)])
    names = ('total', 'language_model', 'distillation', 'hidden_states')
    for total, language_model, distillation, hidden in zip(*(losses[name] for name in names)):
        assert total == pytest.approx(language_model + 0.5 * distillation + 2 * hidden, rel=1e-6)
    assert abs(losses['hidden_states'][0]) < 1e-6 < 0.01 < losses['hidden_states'][-1]


def test_a_student_comes_nearer_to_its_source(folder):
    def distances(weight):
        log, student = InMemoryLogger(), stock(folder / 'pruned')
        distillation = Distillation(str(folder / 'source'), hidden_weight=weight)
        trainer = tiny_trainer(folder / 'pruned', [distillation], model=student, batches=30, loggers=[log])
        trainer.fit()
        trainer.close()
        return [float(value) for _, value in log.data['loss/train/hidden_states']]

    free, drawn = distances(1e-9), distances(5.0)
    assert free[0] == pytest.approx(drawn[0], abs=1e-6)
    assert sum(drawn[-5:]) < 0.7 * sum(free[-5:])


def test_no_part_of_the_loss_where_it_is_not_asked_for(folder, tmp_path):
    assert 'hidden_states' not in pruned(folder / 'source', tmp_path / 'out', [Distillation(str(folder / 'source'))])


def test_the_same_model_in_another_basis_is_refused_at_the_first_batch(folder):
    mirrored, source = (stock(folder / name).model for name in ('mirrored', 'source'))
    torch.testing.assert_close(mirrored(IDS).logits, source(IDS).logits)
    trainer = tiny_trainer(
        folder / 'pruned', [Distillation(str(folder / 'mirrored'), hidden_weight=1.0)], model=stock(folder / 'pruned')
    )
    with pytest.raises(ValueError, match='they are other dimensions. Give the teacher that the student was cut from'):
        trainer.fit()
    trainer.close()


def test_a_teacher_of_another_size_and_what_is_stored_are_refused(folder, tmp_path):
    tiny_source(tmp_path / 'narrow', hidden_size=36)
    distillation = Distillation(str(tmp_path / 'narrow'), hidden_weight=1.0)
    with pytest.raises(ValueError, match='of hidden size 48; this one has 36'):
        tiny_trainer(folder / 'pruned', [distillation], model=stock(folder / 'pruned'))
    with pytest.raises(ValueError, match='hidden_weight=1.0 needs a live teacher'):
        Distillation(stored=True, hidden_weight=1.0)
    with pytest.raises(ValueError, match='hidden_weight: expected a number of at least 0, got -1'):
        Distillation(str(folder / 'source'), hidden_weight=-1)
