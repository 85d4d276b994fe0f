"""Distillation: the divergence against closed forms and autograd, and what it does in real runs."""

import pytest
import torch
from composer.core import DataSpec, Evaluator
from composer.loggers import InMemoryLogger
from llmfoundry.data.utils import get_tokens_per_batch_func
from torch.utils.data import DataLoader

import llmshearing.algorithms.distillation.divergence as divergence
from llmshearing.algorithms.distillation import Distillation
from llmshearing.algorithms.distillation.distillation import predicting_positions
from llmshearing.algorithms.distillation.divergence import distillation_loss, teacher_target
from llmshearing.algorithms.distillation.teacher import check_copy_fits
from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.tiny_run import Sequences, losses_by_name, stock, tiny_source, tiny_tokenizer, tiny_trainer

VOCABULARY = 23
TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}


def random_logits(seed, rows=7, vocabulary=VOCABULARY):
    return 3.0 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def reference(student, teacher, temperature, top_k=None):
    """The definition, written out in float64: mean over rows of T^2 * KL, with one bucket for what is not in the top
    k."""
    p, q = torch.softmax(teacher.double() / temperature, -1), torch.softmax(student.double() / temperature, -1)
    if top_k is not None:
        kept = p.argsort(dim=-1, descending=True)[:, :top_k]
        p, q = (torch.cat([x.gather(-1, kept), 1 - x.gather(-1, kept).sum(-1, keepdim=True)], -1) for x in (p, q))
    return temperature**2 * (p * (p / q).log()).sum(-1).mean()


def loss_and_gradient(student, teacher, temperature=1.0, top_k=None, positions=None, vocabulary=VOCABULARY):
    student = student.clone().requires_grad_()
    positions = torch.arange(len(student)) if positions is None else positions
    loss = distillation_loss(student, teacher_target(teacher, temperature, top_k, vocabulary), positions)
    (2.5 * loss).backward()
    return loss.detach(), student.grad / 2.5


def test_two_tokens_by_hand():
    teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    loss, gradient = loss_and_gradient(student, teacher, vocabulary=2)
    assert loss.item() == pytest.approx(
        0.75 * torch.tensor(1.5).log().item() + 0.25 * torch.tensor(0.5).log().item(), rel=1e-6
    )
    torch.testing.assert_close(gradient, torch.tensor([[0.5 - 0.75, 0.5 - 0.25]]))


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
@pytest.mark.parametrize('top_k', [None, 1, 5, VOCABULARY - 1])
def test_loss_and_gradient_are_those_of_the_definition(temperature, top_k, monkeypatch):
    monkeypatch.setattr(divergence, 'CHUNK_ELEMENTS', 3 * VOCABULARY)  # chunks of three rows, and one of one
    student, teacher = random_logits(0), random_logits(1)
    loss, gradient = loss_and_gradient(student, teacher, temperature, top_k)
    wanted = student.double().requires_grad_()
    expected = reference(wanted, teacher, temperature, top_k)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient.double(), wanted.grad, rtol=1e-4, atol=1e-6)


def test_the_factor_keeps_gradients_the_same_size_at_every_temperature():
    student, teacher = random_logits(0), random_logits(1)
    once, _ = loss_and_gradient(student, teacher, 1.0)
    scaled, _ = loss_and_gradient(8.0 * student, 8.0 * teacher, 8.0)
    assert scaled.item() == pytest.approx(64.0 * once.item(), rel=1e-5)


def test_all_tokens_as_top_k_equal_the_whole_distribution():
    student, teacher = random_logits(0), random_logits(1)
    teacher[:, 0] -= 200  # a token that underflows in float32
    whole, reduced = (loss_and_gradient(student, teacher, 2.0, top_k) for top_k in (None, VOCABULARY))
    assert whole[0].item() == pytest.approx(reduced[0].item(), rel=1e-6)
    torch.testing.assert_close(whole[1], reduced[1])
    assert loss_and_gradient(student, teacher, 2.0, 3)[0] < whole[0]  # merging tokens never adds divergence


def test_a_bucket_far_below_float32_resolution_has_finite_gradients():
    student, teacher = random_logits(0), random_logits(1)
    student[:, 3], teacher[:, 3] = 60.0, 60.0  # all others together have probability 1e-25
    loss, gradient = loss_and_gradient(student, teacher, 1.0, top_k=1)
    assert torch.isfinite(gradient).all() and 0 <= loss.item() < 1e-6


def test_padding_and_columns_beyond_the_shared_vocabulary_count_nothing():
    student, teacher = random_logits(0, vocabulary=VOCABULARY + 4), random_logits(1, vocabulary=VOCABULARY + 9)
    positions = torch.tensor([0, 2, 5])
    for top_k in (None, 4):
        loss, gradient = loss_and_gradient(student, teacher, 2.0, top_k, positions)
        expected = reference(student[positions, :VOCABULARY], teacher[positions, :VOCABULARY], 2.0, top_k)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert (
            gradient[[1, 3, 4, 6]].eq(0).all()
            and gradient[:, VOCABULARY:].eq(0).all()
            and gradient[positions].ne(0).any()
        )
    assert loss_and_gradient(student, teacher, positions=torch.empty(0, dtype=torch.long))[0].item() == 0.0


def test_positions_are_those_that_predict_a_label():
    labels = torch.tensor([[5, 6, -100, 7], [-100, -100, 8, -100]])
    assert predicting_positions(labels).tolist() == [0, 2, 5]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp('distillation')
    tiny_source(folder / 'teacher', num_hidden_layers=5, seed=1)
    tiny_source(folder / 'student')
    return folder


def run(folders, algorithms, model=None, **settings):
    """Trains the student of this test's folders; returns the trainer and its losses by name."""
    log = InMemoryLogger()
    trainer = tiny_trainer(
        folders / 'student', algorithms, model=model or stock(folders / 'student'), loggers=[log], **settings
    )
    trainer.fit()
    trainer.close()
    return trainer, losses_by_name(log)


def test_a_model_is_no_different_from_itself_and_differs_from_another(folders):
    _, same = run(folders, [Distillation(str(folders / 'student'))], batches=3)
    assert abs(same['distillation'][0]) < 1e-6 < same['distillation'][2]
    _, other = run(folders, [Distillation(str(folders / 'teacher'), weight=0.5, temperature=2.0)], batches=3)
    assert other['distillation'][0] > 0.01
    for total, language_model, distillation in zip(other['total'], other['language_model'], other['distillation']):
        assert total == pytest.approx(language_model + 0.5 * distillation, rel=1e-6)
    assert other['language_model'][0] == pytest.approx(same['language_model'][0], rel=1e-6)


def test_a_student_approaches_its_teacher(folders):
    _, losses = run(
        folders, [Distillation(str(folders / 'teacher'), weight=20.0, top_k=30)], batches=60, learning_rate=5e-3
    )
    assert sum(losses['distillation'][-5:]) < 0.5 * sum(losses['distillation'][:5])


class Padded(Sequences):
    """Sequences of different length, padded, some with labels on a part only."""

    def __getitem__(self, index):
        sample = {name: tensor.clone() for name, tensor in super().__getitem__(index).items()}
        length = 4 + 5 * index % 12
        sample['input_ids'][length:], sample['attention_mask'][length:] = 0, 0
        sample['labels'][length:] = -100
        sample['labels'][: index % 3] = -100
        return sample


def padded_spec(samples, batch_size):
    return DataSpec(DataLoader(Padded(samples), batch_size), get_num_tokens_in_batch=get_tokens_per_batch_func())


@pytest.mark.parametrize('top_k', [None, 9])
def test_microbatches_give_the_gradient_of_the_whole_batch(folders, top_k):
    weights, losses = {}, {}
    for size in (1, 2, 8):
        trainer, losses[size] = run(
            folders,
            [Distillation(str(folders / 'teacher'), weight=3.0, temperature=2.0, top_k=top_k)],
            train_dataloader=padded_spec(8, 8),
            device_train_microbatch_size=size,
            max_duration='1ba',
            optimizers=torch.optim.SGD((model := stock(folders / 'student')).parameters(), lr=1.0),
            schedulers=None,
            model=model,
            accumulate_train_batch_on_tokens=True,
        )
        weights[size] = [parameter.detach().clone() for parameter in trainer.state.model.parameters()]
    for size in (1, 2):
        for name in ('total', 'distillation'):
            assert losses[size][name] == pytest.approx(losses[8][name], rel=1e-5)
        for mine, whole in zip(weights[size], weights[8]):
            torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_left_alone_and_in_no_checkpoint(folders, tmp_path):
    before = {name: tensor.clone() for name, tensor in stock(folders / 'teacher').model.state_dict().items()}
    distillation = Distillation(str(folders / 'teacher'))
    trainer, _ = run(
        folders, [distillation], batches=2, save_folder=str(tmp_path), save_filename='last.pt', run_name='x'
    )
    for name, tensor in distillation.teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not distillation.teacher.training
    assert all(not p.requires_grad and p.grad is None for p in distillation.teacher.parameters())
    ours = {id(p) for p in distillation.teacher.parameters()}
    assert not ours & {id(p) for group in trainer.state.optimizers[0].param_groups for p in group['params']}
    assert not ours & {id(p) for p in trainer.state.model.parameters()}
    state = torch.load(tmp_path / 'last.pt', weights_only=False)['state']
    assert set(state['model']) == set(stock(folders / 'student').state_dict())
    assert dict(state['algorithms'])['Distillation'] == {}
    assert (tmp_path / 'last.pt').stat().st_size < 4.5 * sum(4 * p.numel() for p in trainer.state.model.parameters())


@pytest.mark.parametrize('pruning', [False, True])
def test_a_stopped_run_goes_on_bit_for_bit(folders, tmp_path, pruning):

    def one(folder, load=None):
        algorithms = [Distillation(str(folders / 'student'), top_k=8)]
        model = None
        if pruning:
            algorithms.append(TargetedPruning(TARGET, warmup='3ba', mask_learning='lagrangian'))
            model = ShearedCausalLM(tiny_tokenizer(), str(folders / 'student'))
        trainer, losses = run(
            folders,
            algorithms,
            model,
            batches=6,
            save_folder=str(tmp_path / folder),
            save_filename='ba{batch}.pt',
            save_interval='1ba',
            load_path=load,
            run_name='x',
        )
        return trainer, losses['distillation']

    whole, losses = one('whole')
    resumed, later = one('resumed', str(tmp_path / 'whole' / 'ba3.pt'))
    assert later == losses[3:] and all(value > 0 for value in later)
    for mine, theirs in zip(resumed.state.model.parameters(), whole.state.model.parameters()):
        assert torch.equal(mine, theirs)


def test_evaluation_asks_no_teacher(folders):
    distillation = Distillation(str(folders / 'teacher'))
    trainer = tiny_trainer(folders / 'student', [distillation], model=stock(folders / 'student'), batches=1)
    calls = []
    distillation.teacher.register_forward_hook(lambda *_: calls.append(1))
    trainer.eval(Evaluator(label='held_out', dataloader=padded_spec(4, 4), metric_names=['LanguageCrossEntropy']))
    assert not calls
    trainer.fit()
    assert calls == [1]
    trainer.close()


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'weight': 0}, 'weight: expected a number above 0, got 0'),
        ({'temperature': -1.0}, 'temperature: expected a number above 0, got -1.0'),
        ({'temperature': float('nan')}, 'temperature: expected a number above 0, got nan'),
        ({'top_k': 0}, 'top_k: expected a whole number of at least 1, got 0'),
        ({'top_k': 2.5}, 'top_k: expected a whole number of at least 1, got 2.5'),
        ({'teacher': '/no/such/folder'}, '/no/such/folder is no Hugging Face model folder'),
    ],
)
def test_settings_that_cannot_be(folders, settings, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**{'teacher': str(folders / 'teacher'), **settings})


def test_teachers_that_do_not_fit_are_refused_before_training(folders, tmp_path):

    def start(teacher, **settings):
        tiny_trainer(folders / 'student', [Distillation(str(teacher), **settings)], model=stock(folders / 'student'))

    tiny_source(tmp_path / 'wider', vocab_size=128)
    with pytest.raises(ValueError, match='predicts 128 tokens, the student 97.*set shared_vocab_size.*has 97'):
        start(tmp_path / 'wider')
    start(tmp_path / 'wider', shared_vocab_size=97)
    with pytest.raises(ValueError, match='shared_vocab_size=98 is not possible; it must be from 2 to 97'):
        start(tmp_path / 'wider', shared_vocab_size=98)
    with pytest.raises(ValueError, match='top_k=98 is more than the 97 tokens'):
        start(folders / 'teacher', top_k=98)
    tiny_source(tmp_path / 'other')
    tokenizer = tmp_path / 'other' / 'tokenizer.json'
    tokenizer.write_text(tokenizer.read_text().replace('"w7"', '"other"'))
    with pytest.raises(
        ValueError, match="1 of the first 97 token ids.*the first is 10: 'other' to the teacher, 'w7' to the student"
    ):
        start(tmp_path / 'other')
    for name in ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'):
        (tmp_path / 'other' / name).unlink(missing_ok=True)  # transformers 5 writes two of them
    with pytest.raises(ValueError, match='has no tokenizer'):
        start(tmp_path / 'other')
    tiny_source(tmp_path / 'pointer')
    (tmp_path / 'pointer/model.safetensors').write_text('version https://git-lfs.github.com/spec/v1\n')
    with pytest.raises(ValueError, match='model.safetensors is a pointer of git-lfs'):
        start(tmp_path / 'pointer')
    check_copy_fits(10, 10)
    with pytest.raises(ValueError, match='13.5 GB, and this device has 4.0 GB free. Set fsdp_config'):
        check_copy_fits(13_500_000_000, 4_000_000_000)
