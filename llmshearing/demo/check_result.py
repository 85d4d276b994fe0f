"""Opens a Hugging Face folder as any user would: a process of its own with transformers and nothing of this package.

Run as a script, ``python check_result.py FOLDER [PROMPT ...]``, never imported by the demo: the point is to show that
the result needs none of our code. The model is loaded strictly, generates a continuation of every prompt, and the last
line of the output is the result as JSON. Exit code 0 when all is well; 1 with one line on stderr otherwise.
"""

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ['check', 'main']

PROMPTS = (
    'The capital of France is',
    'import json\n\n\ndef read_json(path):\n    """',
    'Permission is hereby granted, ',
)


def check(folder, prompts=PROMPTS, max_new_tokens=32):
    """Opens ``folder`` and generates greedily.

    Args:
        folder: Hugging Face folder with model and tokenizer.
        prompts: texts to continue.
        max_new_tokens: length of each continuation in tokens.

    Returns:
        A dict with the model class, its shape and number of parameters, and the samples.

    Raises:
        ValueError: weights are missing, left over or of another shape than the configuration says, or the logits are
            not finite.
    """
    torch.set_num_threads(2)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    model, info = loaded  # a pair, which transformers' annotations leave out
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        raise ValueError(f'{folder} does not hold the weights of its configuration: {wrong}')
    model.eval()
    samples = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors='pt', return_token_type_ids=False)
        with torch.inference_mode():
            if not torch.isfinite(model(**inputs).logits).all():
                raise ValueError(f'{folder}: the logits after {prompt!r} are not finite')
            output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        continuation = tokenizer.decode(output[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True)
        samples.append({'prompt': prompt, 'continuation': continuation})
    config = model.config
    return {
        'model': type(model).__name__,
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        'num_hidden_layers': config.num_hidden_layers,
        'hidden_size': config.hidden_size,
        'intermediate_size': config.intermediate_size,
        'num_attention_heads': config.num_attention_heads,
        'num_key_value_heads': config.num_key_value_heads,
        'samples': samples,
    }


def main(argv):
    """Checks ``argv[0]`` with the prompts in ``argv[1:]``, if any. Returns the exit code."""
    if not argv:
        sys.stderr.write('usage: check_result.py FOLDER [PROMPT ...]\n')
        return 2
    try:
        result = check(argv[0], tuple(argv[1:]) or PROMPTS)
        ours = sorted(name for name in sys.modules if name.split('.')[0] in ('llmshearing', 'llmfoundry', 'composer'))
        if ours:
            raise ValueError(f'this process should hold transformers only, but it imported {ours[:5]}')
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: weights of another shape
        sys.stderr.write(f'check_result: {" ".join(str(error).split())}\n')
        return 1
    for sample in result['samples']:
        sys.stdout.write(f'{sample["prompt"]}|{sample["continuation"]}\n\n')
    sys.stdout.write(json.dumps(result) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
