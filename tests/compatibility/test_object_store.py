"""A remote save folder through Composer's S3 object store, against moto's server on this machine:
save, resume, export, refuse."""

import os
import signal

import boto3
import pytest
import torch
from composer import Callback
from composer.loggers import InMemoryLogger
from moto.server import ThreadedMotoServer

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.callbacks.stop_on_sigterm import EXIT_CODE, StopOnSigterm
from llmshearing.checkpoints.guard import guard_checkpoint_loading
from llmshearing.checkpoints.remote import local_copy
from llmshearing.export.job import export_checkpoint
from llmshearing.export.settings import ExportSettings
from tests.security.attack import armed, disarmed
from tests.tiny_run import tiny_source, tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
BUCKET = 'runs'


@pytest.fixture(scope='module')
def bucket():
    """An empty bucket; the client to look into it."""
    server = ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    address = f'http://127.0.0.1:{port}'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('S3_ENDPOINT_URL', address)
        patch.setenv('AWS_ACCESS_KEY_ID', 'testing')
        patch.setenv('AWS_SECRET_ACCESS_KEY', 'testing')
        patch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
        client = boto3.client('s3', endpoint_url=address)
        client.create_bucket(Bucket=BUCKET)
        yield client
    server.stop()


def run(source, out, batches, **settings):
    """Prunes up to ``batches``;
    the trainer is closed whatever happens, or its uploading processes would wait for ever."""
    pruning, log = TargetedPruning(TARGET, mask_learning='lagrangian'), InMemoryLogger()
    export = ExportPruned(str(out), allow_unconverged=True)
    trainer = tiny_trainer(source, [pruning], batches=4, callbacks=[export], loggers=[log], **settings)
    try:
        begun = trainer.state.timestamp.batch.value
        trainer.fit(duration=f'{batches - begun}ba')
    finally:
        trainer.close()
    return begun, pruning, log.data['loss/train/total']


class Signal(Callback):
    """Sends this process SIGTERM in the third batch."""

    def after_loss(self, state, logger):
        if state.timestamp.batch == 2:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow  # uploading processes, as below
def test_a_run_that_is_told_to_stop_leaves_the_link_to_its_checkpoint(bucket, tmp_path):
    """Autoresume of sharded checkpoints looks for nothing else."""
    source = tiny_source(tmp_path / 'source')
    trainer = tiny_trainer(
        source,
        [],
        batches=6,
        callbacks=[Signal(), StopOnSigterm()],
        run_name='r',
        save_folder=f's3://{BUCKET}/stopped',
        save_interval='100ba',
        save_filename='ba{batch}.pt',
    )
    try:
        with pytest.raises(SystemExit) as left:
            trainer.fit()
    finally:
        trainer.close()
    assert left.value.code == EXIT_CODE
    link = bucket.get_object(Bucket=BUCKET, Key='stopped/latest-rank0.pt.symlink')['Body'].read().decode()
    assert link == 'stopped/ba3.pt' and bucket.head_object(Bucket=BUCKET, Key=link)['ContentLength'] > 0


@pytest.mark.slow  # about 100 s: Composer's uploading processes import everything anew
def test_a_remote_save_folder_saves_resumes_and_exports(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    source = tiny_source(tmp_path / 'source')
    saving = dict(save_folder=f's3://{BUCKET}/first', save_interval='1ba', save_filename='ba{batch}.pt')
    _, first, losses = run(source, tmp_path / 'first', 3, **saving)
    names = {entry['Key'] for entry in bucket.list_objects_v2(Bucket=BUCKET)['Contents']}
    assert {'first/ba1.pt', 'first/ba2.pt', 'first/ba3.pt'} <= names
    guard_checkpoint_loading()
    begun, resumed, again = run(source, tmp_path / 'second', 3, load_path=f's3://{BUCKET}/first/ba2.pt')
    assert begun == 2
    assert [value for _, value in again] == [losses[2][1]]
    assert all(torch.equal(value, resumed.learner.log_alpha[axis]) for axis, value in first.learner.log_alpha.items())
    with local_copy(f's3://{BUCKET}/first/ba3.pt', progress=False) as path:
        report = export_checkpoint(
            path, tmp_path / 'out', ExportSettings(source=str(source), allow_unconverged=True, progress=False)
        )
    assert report['shape'].hidden_size == 36
    with disarmed(tmp_path / 'marker') as marker:
        bucket.upload_file(str(armed(tmp_path / 'evil.pt', marker)), BUCKET, 'first/evil.pt')
        with pytest.raises(ValueError, match='could run code'):
            run(source, tmp_path / 'third', 3, load_path=f's3://{BUCKET}/first/evil.pt')
