"""What commands have in common."""

import importlib
import inspect
from argparse import Namespace
from dataclasses import dataclass

import pytest

from llmshearing.commands.arguments import parse_target, settings_from
from llmshearing.cut.settings import CutSettings
from llmshearing.export.legacy_import import ImportSettings
from llmshearing.export.settings import ExportSettings
from llmshearing.recipes.request import Request
from llmshearing.rotation.settings import RotationSettings
from llmshearing.search.settings import SearchSettings
from llmshearing.teacher.settings import TeachSettings
from llmshearing.vocabulary.settings import TrimSettings


@dataclass
class Settings:
    size: int
    name: str = 'a'
    keep: int = 7


def test_settings_are_the_options_of_their_names():
    options = Namespace(size=3, name='text', output='folder')
    assert settings_from(Settings, options) == Settings(3, 'text')
    assert settings_from(Settings, options, name='given') == Settings(3, 'given')


@pytest.mark.parametrize(
    'command, kind',
    {
        'cut': CutSettings,
        'export': ExportSettings,
        'import_legacy': ImportSettings,
        'init': Request,
        'rotate': RotationSettings,
        'search': SearchSettings,
        'teach': TeachSettings,
        'trim_vocab': TrimSettings,
    }.items(),
)
def test_an_option_has_the_default_of_its_setting(command, kind):
    """A command tells its defaults without importing what it runs, so they stand in both places."""
    parser = importlib.import_module(f'llmshearing.commands.{command}')._parser()
    options = {action.dest: action for action in parser._actions}
    settings = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    shared = [name for name in options.keys() & settings.keys() if settings[name] is not inspect.Parameter.empty]
    told = {name: options[name].default for name in shared}
    told = {
        name: options[name].type(value) if isinstance(value, str) and options[name].type else value
        for name, value in told.items()
    }
    assert len(shared) > 4
    assert {name: None if value == 'same' else value for name, value in told.items()} == {
        name: settings[name] for name in shared
    }


def test_a_target_has_the_values_that_a_yaml_would_have():
    items = ['uneven_heads=true', 'hidden_size=48', 'fraction.intermediate_size=0.5', 'params=1.3B', 'x=False']
    assert parse_target(items) == {
        'uneven_heads': True,
        'hidden_size': 48,
        'fraction': {'intermediate_size': 0.5},
        'params': '1.3B',
        'x': False,
    }
