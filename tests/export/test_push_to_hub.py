"""Pushing to the Hub, against a local server that speaks as much of its interface as an upload needs."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmshearing.compat.huggingface_hub import HUB_COMMAND

ROOT = Path(__file__).parents[2]
TOKEN = 'hf_' + 'secret' * 5
SCRIPT = """
import sys
from pathlib import Path
from llmshearing.export.hub import check_login, push_folder
try:
    check_login(sys.argv[2])
    print(push_folder(Path(sys.argv[1]), sys.argv[2], public=sys.argv[3] == 'public'))
except ValueError as error:
    sys.exit(f'refused: {error}')
"""


class Hub(BaseHTTPRequestHandler):
    """Knows one user, makes repositories, takes files in the commit itself."""

    def do_GET(self):
        if self.path == '/api/whoami-v2' and self.is_known():
            self.answer({'name': 'me', 'type': 'user'})
        elif self.path.startswith('/api/models/me/small/') and self.is_known():
            self.answer({'id': 'me/small', 'private': True, 'xetEnabled': False})
        else:
            self.answer({'error': 'Invalid credentials'}, 401)

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        if not self.is_known() or self.server.refuses in self.path:
            self.answer({'error': 'You may not write here'}, 403)
        elif self.path == '/api/repos/create':
            request = json.loads(body)
            request.setdefault('private', request.get('visibility') == 'private')  # huggingface_hub 1.0 and newer
            self.server.created.append(request)
            self.answer({'url': f'{self.server.url}/me/small'})
        elif '/preupload/' in self.path:
            files = json.loads(body)['files']
            self.answer(
                {'files': [{'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False} for file in files]}
            )
        elif '/commit/' in self.path:
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file':
                    self.server.files[line['value']['path']] = base64.b64decode(line['value']['content'])
            self.answer({'commitUrl': f'{self.server.url}/me/small/commit/1', 'commitOid': '1', 'hookOutput': ''})
        else:
            self.answer({})

    def is_known(self):
        return self.headers.get('Authorization', self.headers.get('authorization')) == f'Bearer {TOKEN}'

    def answer(self, content, code=200):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Silent."""


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.url, server.created, server.files, server.refuses = (
        f'http://127.0.0.1:{server.server_port}',
        [],
        {},
        '/nothing',
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def push(hub, folder, token, home, repo='me/small', visibility='private'):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith('HF_') and 'proxy' not in name.lower()
    }
    environment |= {
        'HF_ENDPOINT': hub.url,
        'HF_HOME': str(home),
        'PYTHONPATH': str(ROOT),
        'HF_HUB_DISABLE_TELEMETRY': '1',
    }
    if token:
        environment['HF_TOKEN'] = token
    return subprocess.run(
        [sys.executable, '-c', SCRIPT, str(folder), repo, visibility],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'config.json').write_text('{"model_type": "llama"}')
    (tmp_path / 'model' / 'model.safetensors').write_bytes(bytes(range(256)) * 20)
    return tmp_path / 'model'


def test_a_private_repository_with_every_file_and_the_token_nowhere(hub, folder, tmp_path):
    process = push(hub, folder, TOKEN, tmp_path / 'home')
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == f'{hub.url}/me/small'
    assert hub.created[0]['private'] is True and (hub.created[0]['organization'], hub.created[0]['name']) == (
        'me',
        'small',
    )
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert TOKEN not in process.stdout + process.stderr
    assert not [path for path in tmp_path.rglob('*') if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize('token', [None, 'hf_wrong'])
def test_without_a_valid_token_nothing_is_sent(hub, folder, tmp_path, token):
    process = push(hub, folder, token, tmp_path / 'home')
    assert (
        process.returncode == 1
        and 'refused: --push-to-hub me/small: the Hugging Face Hub does not know this machine' in process.stderr
    )
    assert not hub.created and not hub.files and 'hf_wrong' not in process.stderr


@pytest.mark.parametrize('visibility, flag', [('private', ' --private'), ('public', '')])
def test_a_refusal_says_that_the_export_is_complete(hub, folder, tmp_path, visibility, flag):
    hub.refuses = '/commit/'
    process = push(hub, folder, TOKEN, tmp_path / 'home', visibility=visibility)
    assert f'`{HUB_COMMAND} upload me/small {folder}{flag}`' in process.stderr
    assert hub.created[0]['private'] is (visibility == 'private')
    assert process.returncode == 1 and f'The export itself is complete in {folder}' in process.stderr and not hub.files
    assert 'You may not write here' in process.stderr and TOKEN not in process.stderr


def test_an_impossible_name_is_refused_first(hub, folder, tmp_path):
    process = push(hub, folder, TOKEN, tmp_path / 'home', repo='a/b/c')
    assert process.returncode == 1 and 'refused: ' in process.stderr and 'a/b/c' in process.stderr and not hub.created
