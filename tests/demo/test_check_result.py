"""The last check of the demo runs as a user's process: transformers, and nothing of this package."""

import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from llmshearing.demo import check_result
from tests.demo.tiny_source import save_tiny

SCRIPT = Path(check_result.__file__)


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_good_folder_generates(tmp_path):
    save_tiny(tmp_path)
    done = run(tmp_path, 'hello the', '12')
    assert done.returncode == 0, done.stderr
    *samples, last = done.stdout.strip().splitlines()
    assert last.startswith('LlamaForCausalLM of ') and 'alone; logits are finite' in last
    continuations = [line.split('|', 1) for line in samples if '|' in line]
    assert [prompt for prompt, _ in continuations] == ['hello the', '12'] and all(text for _, text in continuations)
    assert 'deprecated' not in done.stderr


def test_a_missing_weight_is_an_error_in_one_line(tmp_path, capsys):
    save_tiny(tmp_path)
    weights = load_file(tmp_path / 'model.safetensors')
    del weights['model.norm.weight']
    save_file(weights, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    assert check_result.main([str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert output.out == '' and 'model.norm.weight' in output.err.splitlines()[-1]
    assert check_result.main([str(tmp_path / 'nowhere')]) == 1
    assert check_result.main([]) == 2


def test_the_script_notices_that_this_package_was_imported(tmp_path, capsys):
    # This test has imported the package itself, so in this process the check must fail.
    save_tiny(tmp_path)
    assert check_result.main([str(tmp_path), 'hello']) == 1
    assert 'this process should hold transformers only' in capsys.readouterr().err
