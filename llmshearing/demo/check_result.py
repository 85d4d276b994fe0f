"""Opens a Hugging Face folder as any user would: a process of its own with transformers and nothing of this package.

Run as a script, ``python check_result.py FOLDER [PROMPT ...]``, never imported by the demo: the point is to show that
the result needs none of our code. The model is loaded strictly and generates a continuation of every prompt; the last
line says what was opened. Exit code 0 when all is well; 1 with one line on stderr otherwise.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ['check', 'main']

PROMPTS = (
    'The capital of France is',
    'import json\n\n\ndef read_json(path):\n    """',
    'Permission is hereby granted, ',
)


def check(folder: str, prompts: Sequence[str] = PROMPTS, max_new_tokens: int = 32) -> tuple[list[tuple[str, str]], str]:
    """Opens a folder with model and tokenizer and generates greedily.

    Returns:
        tuple[list[tuple[str, str]], str]: Pairs of prompt and continuation, and what was opened, in words.

    Raises:
        ValueError: Weights are missing, left over or of another shape than the configuration says, or the logits are
            not finite.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    model, info = loaded  # a pair, which transformers' annotations leave out
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        raise ValueError(f'{folder} does not hold the weights of its configuration: {wrong}')
    model.float().eval()
    samples = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors='pt', return_token_type_ids=False)
        with torch.inference_mode():
            if not torch.isfinite(model(**inputs).logits).all():
                raise ValueError(f'{folder}: the logits after {prompt!r} are not finite')
            output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        continuation = tokenizer.decode(output[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True)
        samples.append((prompt, continuation))
    return samples, f'{type(model).__name__} of {model.num_parameters():,} parameters'


def main(argv: Sequence[str]) -> int:
    """Checks ``argv[0]`` with the prompts in ``argv[1:]``, if any. Returns the exit code."""
    if not argv:
        sys.stderr.write('usage: check_result.py FOLDER [PROMPT ...]\n')
        return 2
    try:
        samples, model = check(argv[0], tuple(argv[1:]) or PROMPTS)
        ours = sorted(name for name in sys.modules if name.split('.')[0] in ('llmshearing', 'llmfoundry', 'composer'))
        if ours:
            raise ValueError(f'this process should hold transformers only, but it imported {ours[:5]}')
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: weights of another shape
        sys.stderr.write(f'check_result: {" ".join(str(error).split())}\n')
        return 1
    for prompt, continuation in samples:
        sys.stdout.write(f'{prompt}|{continuation}\n\n')
    sys.stdout.write(f'{model}: opened strictly by transformers {transformers.__version__} alone; logits are finite\n')
    return 0


if __name__ == '__main__':
    torch.set_num_threads(2)  # of this process alone, and not of one that imports this file
    sys.exit(main(sys.argv[1:]))
