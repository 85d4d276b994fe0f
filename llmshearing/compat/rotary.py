"""Rotary settings of a config.json, in the words of transformers 4 and of 5: checked, and turned into the older ones.

transformers 4 has a base in ``rope_theta`` and the rest in ``rope_scaling``; 5 has all of it in ``rope_parameters``,
for each kind of layer where kinds differ. Settings that 4 would leave out without a word are refused by name.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmshearing.compat.versions import TRANSFORMERS_5, needs_newer
from llmshearing.utils.suggestions import did_you_mean

__all__ = [
    'BASE_KEYS',
    'FULL',
    'SHARE_KEYS',
    'SLIDING',
    'check_rotary',
    'convert_rotary',
    'main_rotary',
    'refuse_contradictions',
    'rename_rotary',
    'rotary_spelling',
]

SLIDING, FULL = 'sliding_attention', 'full_attention'
# Settings of a kind of rotary embedding that transformers 4.51 computes with.
ROTARY_KEYS = {
    'default': (),
    'linear': ('factor',),
    'dynamic': ('factor',),
    'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'),
    'longrope': ('short_factor', 'long_factor', 'factor', 'attention_factor'),
    'yarn': (
        'factor',
        'attention_factor',
        'beta_fast',
        'beta_slow',
        'original_max_position_embeddings',
        'mscale',
        'mscale_all_dim',
    ),
}
# What may stand beside the settings of any kind: read whatever the kind is, or by code that sees pictures, or by none.
BESIDE_ANY = (
    *('rope_type', 'type', 'rope_theta', 'partial_rotary_factor', 'original_max_position_embeddings'),
    *('mrope_section', 'mrope_interleaved', 'finetuned'),
)
BESIDE = {'yarn': ('truncate',)}
OF_TYPE = {'hunyuan_v1_dense': ('alpha',)}
# Settings of one kind that say nothing where they stand under another.
SAYS_NOTHING = {'attention_factor': (1,), 'beta_fast': (32,), 'beta_slow': (1,), 'factor': (1,), 'alpha': (1,)}
SAYS_NOTHING |= dict.fromkeys(('mscale', 'mscale_all_dim'), (0, 1))
KINDS_IN_4 = ('gemma3_text',)  # whose layers with a window have a base of their own
# Names of the base and of the rotated share of a head in transformers 4, by model type; the others rotate whole heads.
BASE_KEYS = {'gpt_neox': ('rotary_emb_base', 'rope_theta')}
SHARE_KEYS = {
    'gpt_neox': ('rotary_pct', 'partial_rotary_factor'),
    **dict.fromkeys(('phi3', 'glm', 'glm4', 'nemotron'), ('partial_rotary_factor',)),
}
# Whose configs in transformers 4 take exactly a `type`, one of these two, and a `factor`.
LINEAR_OR_DYNAMIC = ('olmo', 'olmo2')
WITHOUT_ROTARY = ('olmo_hybrid',)  # where rope_theta is None
BASES = ('rope_theta', 'rotary_emb_base', 'rope_local_base_freq')


def main_rotary(rotary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of ``rope_parameters``, the settings of layers with full attention, or the only ones."""
    return rotary[FULL] if isinstance(rotary.get(FULL), Mapping) else rotary


def rotary_spelling(config: Any, key: str, value: Any) -> dict[str, Any] | None:
    """What a change of a rotary setting, in the words of either generation, is in those of the installed one.

    Args:
        config (Any): The config that is to be changed.
        key (str): Such as ``'rope_theta'`` or ``'rope_parameters'``.
        value (Any): What it is to be.

    Returns:
        dict[str, Any] | None: Keys of the config with their whole values; None for a key that is no rotary setting.

    Raises:
        ValueError: If the installed transformers does not compute that.
    """
    if not TRANSFORMERS_5:
        if key != 'rope_parameters' or not isinstance(value, Mapping):
            return None
        content = {'model_type': config.model_type, key: dict(value)}
        convert_rotary(content)
        return {name: value for name, value in content.items() if name != 'model_type' and value is not None} or None
    rotary = getattr(config, 'rope_parameters', None) or {}
    main = main_rotary(rotary)
    base, share = BASE_KEYS.get(config.model_type, ()), SHARE_KEYS.get(config.model_type, ())
    newer = {**dict.fromkeys(('rope_theta', *base), 'rope_theta'), **dict.fromkeys(share, 'partial_rotary_factor')}
    if key in newer:
        settings = {newer[key]: value}
    elif key in ('rope_scaling', 'rope_parameters') and isinstance(value, Mapping) and not set(value) & {FULL, SLIDING}:
        settings = {('rope_type' if name == 'type' else name): setting for name, setting in value.items()}
    else:
        return None
    is_same_kind = settings.get('rope_type', _kind(main)) == _kind(main)
    kept = {name: main[name] for name in main if is_same_kind or name in ('rope_theta', 'partial_rotary_factor')}
    changed = {**kept, **settings}
    return {'rope_parameters': changed if main is rotary else {**rotary, FULL: changed}}


def rename_rotary(content: dict[str, Any]) -> None:
    """A kind of rotary embedding by its name of today."""
    for place in ('rope_scaling', 'rope_parameters'):
        settings = content.get(place)
        for key in ('type', 'rope_type'):
            if isinstance(settings, dict) and settings.get(key) == 'su':  # as the first Phi 3 called it
                settings[key] = 'longrope'


def refuse_contradictions(content: Mapping[str, Any]) -> None:
    """Raises a ValueError where an older and a newer key say different things."""
    model_type = content.get('model_type', '')
    bases, shares = BASE_KEYS.get(model_type, ('rope_theta',)), SHARE_KEYS.get(model_type, ())
    pairs = [(name, 'rope_theta') for name in bases] + [(name, 'partial_rotary_factor') for name in shares]
    given = {place: content.get(place) for place in ('rope_parameters', 'rope_scaling')}
    mains = {place: main_rotary(settings) if isinstance(settings, dict) else {} for place, settings in given.items()}
    for (place, main), (older, newer) in itertools.product(mains.items(), pairs):
        if place == 'rope_scaling' and not TRANSFORMERS_5:  # which computes with no base or share there
            continue
        if content.get(older) is not None and newer in main and content[older] != main[newer]:
            raise _two_meanings(f'{older}: {content[older]} and {place}.{newer}: {main[newer]}')
    main, scaling = mains.values()
    if main and scaling:
        differing = [key for key in scaling if key not in ('type', 'rope_type') and scaling[key] != main.get(key)]
        if differing or _kind(scaling) != _kind(main):
            raise _two_meanings(f'rope_scaling: {scaling} and rope_parameters: {main}')


def _two_meanings(said: str) -> ValueError:
    return ValueError(
        f'the config says {said}; which of the two the model was trained with is not known: correct its config.json.'
    )


def check_rotary(content: Mapping[str, Any]) -> None:
    """Raises a ValueError for rotary settings that no model computes with, naming the key."""
    places: list[tuple[str, Any]] = [('rope_scaling', content.get('rope_scaling'))]
    rotary = content.get('rope_parameters')
    if isinstance(rotary, dict):
        nested = {kind: value for kind, value in rotary.items() if isinstance(value, dict)}
        if nested and not _has_kinds(content.get('model_type', '')):
            raise ValueError(
                f'the config has rope_parameters of {", ".join(nested)}, and every layer of a '
                f'{content.get("model_type")} has the same; write the settings themselves into its config.json, as '
                "rope_parameters: {'rope_type': ..., 'rope_theta': ...}, or correct its model_type."
            )
        places += [(f'rope_parameters.{kind}', value) for kind, value in nested.items()] or [
            ('rope_parameters', rotary)
        ]
    places += [('', {key: content[key] for key in BASES if content.get(key) is not None})]
    for place, settings in places:
        if settings is None:
            continue
        if not isinstance(settings, dict):
            raise ValueError(
                f'the config has {place}: {settings!r}; expected a mapping, or null: correct its config.json.'
            )
        kind = settings.get('rope_type', settings.get('type'))
        if settings.get('type', kind) != kind:
            raise ValueError(f'the config says {place}: {settings}, two kinds at once; correct its config.json.')
        if kind not in (None, 'default', 'mrope', *ROPE_INIT_FUNCTIONS):  # the former two are no function everywhere
            known = f'the installed transformers knows {", ".join(ROPE_INIT_FUNCTIONS)}; correct its config.json.'
            raise ValueError(
                f'the config has {place}.rope_type: {kind!r}; {known}'
                if TRANSFORMERS_5
                else needs_newer(f'{place}.rope_type', kind)
            )
        if kind is None and 'factor' in settings:
            raise ValueError(
                f'the config says {place}: {settings} without a rope_type, so its factor would be left out; add the '
                'kind that the model was trained with, such as rope_type: linear.'
            )
        if place:
            _refuse_unread(place, settings, kind or 'default', content.get('model_type', ''))
        for key in (*BASES, 'factor'):
            value = settings.get(key, 1.0)
            if value is None and (key == 'factor' or content.get('model_type') in WITHOUT_ROTARY):
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
                name = f'{place}.{key}' if place else key
                raise ValueError(
                    f'the config has {name}: {value!r}; expected a number above 0: correct its config.json.'
                )


def _own_rotary(model_type: str) -> Mapping[str, Any]:
    """Rotary settings that transformers' own config of a type has."""
    config = CONFIG_MAPPING[model_type]() if model_type in CONFIG_MAPPING else None
    return getattr(config, 'rope_parameters', None) or {}


def _has_kinds(model_type: str) -> bool:
    of_its_own = any(isinstance(value, Mapping) for value in _own_rotary(model_type).values())
    return model_type in KINDS_IN_4 or of_its_own or model_type not in CONFIG_MAPPING


def _refuse_unread(place: str, settings: Mapping[str, Any], kind: str, model_type: str) -> None:
    """Raises a ValueError for a key that a kind of rotary embedding leaves out, such as a misspelt one."""
    if kind not in ROTARY_KEYS:  # such as mrope, which configs have names of their own for
        return
    read = (*ROTARY_KEYS[kind], *BESIDE.get(kind, ()), *OF_TYPE.get(model_type, ()))
    unread = [
        key
        for key, value in settings.items()
        if key not in (*read, *BESIDE_ANY) and value not in (None, False, *SAYS_NOTHING.get(key, ()))
    ]
    unread = [key for key in unread if key not in main_rotary(_own_rotary(model_type))] if unread else []
    if unread:
        known = (*read, *BESIDE_ANY[2:5])
        raise ValueError(
            f'the config has {place}.{unread[0]}: {settings[unread[0]]!r}, which rope_type: {kind} does not read.'
            f'{did_you_mean(unread[0], known)} It reads {", ".join(dict.fromkeys(known))}; correct its config.json.'
        )


def convert_rotary(content: dict[str, Any]) -> None:
    """``rope_parameters`` to ``rope_theta``, ``rope_scaling`` and what else transformers 4 calls its parts."""
    rotary = content.pop('rope_parameters', None)
    if rotary is None:
        _check_older_rotary(content)
        return
    model_type = content.get('model_type', '')
    by_kind = {kind: value for kind, value in rotary.items() if isinstance(value, dict)}
    if by_kind and model_type == 'gemma3_text':
        local = by_kind.pop(SLIDING, {})
        if _kind(local) != 'default':
            raise ValueError(needs_newer(f'rope_parameters.{SLIDING}.rope_type', _kind(local)))
        if 'rope_theta' in local:
            content['rope_local_base_freq'] = local['rope_theta']
    if len({json.dumps(value, sort_keys=True) for value in by_kind.values()}) > 1:
        raise ValueError(needs_newer('rope_parameters', rotary))
    main = dict(next(iter(by_kind.values()))) if by_kind else dict(rotary)
    kind = _kind(main)
    main = {key: value for key, value in main.items() if key not in ('type', 'rope_type')}
    if kind not in ROTARY_KEYS:
        raise ValueError(needs_newer('rope_parameters.rope_type', kind))
    if 'rope_theta' in main:
        content.update(dict.fromkeys(BASE_KEYS.get(model_type, ('rope_theta',)), main.pop('rope_theta')))
    share = main.pop('partial_rotary_factor', None)
    if share is not None:
        if model_type not in SHARE_KEYS and share != 1.0:
            raise ValueError(needs_newer('rope_parameters.partial_rotary_factor', share))
        content.update(dict.fromkeys(SHARE_KEYS.get(model_type, ()), share))
    content['rope_scaling'] = _rope_scaling(content, kind, main)


def _check_older_rotary(content: dict[str, Any]) -> None:
    """Holds ``rope_scaling`` against the same rules; what says nothing in it may stay."""
    scaling = content.get('rope_scaling')
    if scaling is None or _kind(scaling) not in ROTARY_KEYS:  # such as mrope, which configs have names of their own for
        return
    kind = _kind(scaling)
    base = next((content[key] for key in BASES if content.get(key) is not None), None)
    for key, value in (('rope_theta', base), ('partial_rotary_factor', content.get('partial_rotary_factor', 1.0))):
        if scaling.get(key, value) != value:
            raise ValueError(needs_newer(f'rope_scaling.{key}', scaling[key]))
    main = {key: value for key, value in scaling.items() if key in (*ROTARY_KEYS[kind], 'truncate')}
    original = 'original_max_position_embeddings'
    if kind == 'longrope':
        main[original] = scaling.get(original, content.get(original))
        content['rope_scaling'] = {key: value for key, value in scaling.items() if key != original}
    converted = _rope_scaling(content, kind, main, 'rope_scaling')
    if content.get('model_type') in LINEAR_OR_DYNAMIC:
        content['rope_scaling'] = converted


def _rope_scaling(
    content: dict[str, Any], kind: str, main: dict[str, Any], place: str = 'rope_parameters'
) -> dict[str, Any] | None:
    """The ``rope_scaling`` that transformers 4 computes the same with."""
    longest, original = content.get('max_position_embeddings'), main.get('original_max_position_embeddings')
    if kind == 'longrope':  # version 4 reads it beside rope_scaling
        main.pop('original_max_position_embeddings', None)
        if original is not None:
            if content.get('original_max_position_embeddings', original) != original:
                raise ValueError(needs_newer(f'{place}.original_max_position_embeddings', original))
            content['original_max_position_embeddings'] = original
    if kind == 'dynamic' and original == longest:
        main.pop('original_max_position_embeddings', None)
    if main.get('truncate') is True:
        del main['truncate']
    if kind in ('yarn', 'longrope') and original and longest and main.get('factor') is not None:
        if longest / original != main['factor']:  # version 4 takes the quotient whatever factor says
            refusal = needs_newer(f'{place}.factor', main['factor'])
            raise ValueError(f'{refusal[:-1]} (it takes {longest} / {original}).')
    main = {key: value for key, value in main.items() if value is not None}
    unknown = [key for key in main if key not in ROTARY_KEYS[kind]]
    if unknown:
        raise ValueError(needs_newer(f'{place}.{unknown[0]}', main[unknown[0]]))
    if kind == 'default':
        return None
    if content.get('model_type') == 'phi3':  # which takes exactly these
        if main.get('attention_factor') is not None:
            raise ValueError(needs_newer(f'{place}.attention_factor', main['attention_factor']))
        return {'type': kind, 'short_factor': main['short_factor'], 'long_factor': main['long_factor']}
    if content.get('model_type') in LINEAR_OR_DYNAMIC:
        if kind not in ('linear', 'dynamic'):
            raise ValueError(needs_newer(f'{place}.rope_type', kind))
        return {'type': kind, 'factor': float(main['factor'])}
    return {'rope_type': kind, **main}


def _kind(rotary: Mapping[str, Any]) -> str:
    return rotary.get('rope_type') or rotary.get('type') or 'default'
