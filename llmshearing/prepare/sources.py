"""Where documents come from: files found by path, folder or pattern, and what each of them holds.

Folders are walked with their links, since data sets are often put together from linked folders and shards. What is not
read is never left out in silence: it is collected with the reason, counted, and shown with one example.
"""

from __future__ import annotations

import glob as globbing
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llmshearing.prepare.contents import NO_TEXT, WRAP, Content, is_compressed, look_into
from llmshearing.prepare.fields import MISSING, field_names, find_field
from llmshearing.prepare.spec import Domain
from llmshearing.utils.files import refuse_pointer
from llmshearing.utils.paths import is_hidden, walk_files

__all__ = ['Skipped', 'Source', 'find_sources', 'no_text']

_ENDINGS = {'jsonl': ('.jsonl', '.ndjson', '.json'), 'txt': ('.txt',), 'parquet': ('.parquet', '.pq')}
_TABLES = ('.csv', '.tsv', '.xlsx', '.xls', '.ods')
_ARROW = '.arrow'
_COMPRESSED = ('.gz', '.zst', '.bz2', '.xz')
_KINDS = {
    'jsonl': 'JSON lines',
    'json': 'JSON',
    'txt': 'plain text',
    'file': 'files that are a document each',
    'parquet': 'Parquet',
    'hf': 'a Hugging Face data set',
    'mds': 'MDS',
}
_HF_MARKERS = ('dataset_info.json', 'dataset_dict.json')  # of one data set, and of several splits
_HF_STATE = 'state.json'  # beside the first, which folders of other data have as well

Skipped = dict[str, list[str]]
"""Paths that are not read, by reason."""


@dataclass(frozen=True)
class Source:
    """A file, a saved Hugging Face data set or an MDS folder.

    Attributes:
        path (str): Where it is.
        kind (str): How to read it: jsonl, json (a list, or records over several lines), txt, file (a document),
            parquet, hf or mds.
    """

    path: str
    kind: str

    def identity(self) -> list[Any]:
        """What changes when the content changes: path, size and modification time."""
        whole = self.kind in ('hf', 'mds')
        paths = sorted(p for p in Path(self.path).rglob('*') if p.is_file()) if whole else [Path(self.path)]
        stats = [(str(p), p.stat()) for p in paths]
        return [self.kind, [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]]

    def is_packed(self) -> bool:
        """Whether the size on disk says little about the size of the text."""
        return self.kind in ('parquet', 'hf', 'mds') or is_compressed(self.path) is not None


def find_sources(domain: Domain, skipped: Skipped | None = None) -> list[Source]:
    """Lists the files of a domain, in reading order.

    Args:
        domain (Domain): For its paths, format, text key and glob.
        skipped (Skipped | None): Gets the paths that are not read.

    Raises:
        ValueError: If a path does not exist, matches nothing, its format cannot be told, or a setting of the domain
            means nothing for what was found.
    """
    sources: list[Source] = []
    skipped = {} if skipped is None else skipped
    for path in domain.path:
        where = f'domains.{domain.name}: {path!r}'
        if os.path.isdir(path):
            sources += _find_in_folder(Path(path), domain, where, skipped)
        elif os.path.exists(path):
            sources.append(Source(path, _kind(path, domain, where)))
        elif globbing.has_magic(path):
            matches = _expand(path)
            folders = [match for match in matches if os.path.isdir(match) and '**' not in path.split('/')]
            found = [match for match in matches if os.path.isfile(match)]
            if folders and not found:
                raise ValueError(
                    f'{where} matches folders alone, such as {folders[0]}; name the folders, or end the pattern with '
                    '/**, which takes the files below them'
                )
            if not found:
                raise ValueError(f'{where} matches no file; check the pattern and the current folder')
            _skip(skipped, 'folders, of which a pattern takes none (end it with /**)', folders)
            others = (match for match in matches if not os.path.isdir(match) and match not in set(found))
            _skip(skipped, 'links to nothing or no files', others)
            sources += [Source(match, _kind(match, domain, where)) for match in found]
        else:
            raise ValueError(f'{where} does not exist; relative paths start at the current folder, {os.getcwd()}')
    _check_settings(domain, sources)
    return sources


def _check_settings(domain: Domain, sources: Sequence[Source]) -> None:
    """Raises for a setting that nothing found goes by: whoever wrote it expects other documents than come out."""
    kinds = {source.kind for source in sources}
    if not kinds:  # empty files alone, which is told where documents are read
        return
    folders = any(map(os.path.isdir, domain.path)) and bool(kinds - {'hf', 'mds'})
    useless = {
        'separator': (domain.separator is not None and 'txt' not in kinds, 'plain text in .txt files'),
        'glob': (domain.glob is not None and not folders, 'folders of files'),
        'hf_split': (domain.hf_split is not None and 'hf' not in kinds, 'data sets of datasets.save_to_disk'),
        'text_key': (domain.text_key != Domain.text_key and kinds <= {'txt', 'file'}, 'records, such as JSON lines'),
    }
    for key, (is_useless, what) in useless.items():
        if is_useless:
            found = ', '.join(_KINDS[kind] for kind in sorted(kinds))
            raise ValueError(
                f'domains.{domain.name}.{key} is {getattr(domain, key)!r}, which is for {what}, but what was found is '
                f'read as {found}; remove {key}, or correct path or format'
            )


def _skip(skipped: Skipped, reason: str, paths: Iterable[str]) -> None:
    if paths := list(paths):
        skipped.setdefault(reason, []).extend(paths)


def _expand(pattern: str) -> list[str]:
    """Files that a pattern matches, sorted; `**` goes through linked folders, and round no loop of them."""
    parts = pattern.split('/')
    if '**' not in parts:
        return sorted(globbing.glob(pattern))
    first = next(number for number, part in enumerate(parts) if globbing.has_magic(part))
    root = '/'.join(parts[:first]) or ('/' if pattern.startswith('/') else '.')
    found = (os.path.relpath(path, root).split(os.sep) for path in walk_files(root))
    matches = ['/'.join(one) for one in found if _matches(one, parts[first:]) and not is_hidden(one)]
    return sorted(matches if root == '.' else (os.path.join(root, match) for match in matches))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == '**':
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern)) or pattern == ['**']
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _find_in_folder(folder: Path, domain: Domain, where: str, skipped: Skipped) -> list[Source]:
    if domain.format == 'hf' or (domain.format == 'auto' and _is_saved(folder)):
        if not _is_saved(folder):
            raise ValueError(
                f'{where} is not a data set on disk (no {_HF_MARKERS[1]}, nor {_HF_MARKERS[0]} beside {_HF_STATE}); '
                'write one with datasets.Dataset.save_to_disk, or name another format'
            )
        for file in walk_files(str(folder)):
            refuse_pointer(file)
        return [Source(str(folder), 'hf')]
    if domain.format == 'mds' or (domain.format == 'auto' and _is_mds(folder)):
        return [Source(str(folder), 'mds')]
    files = _files_of(folder, domain, where, skipped)
    if domain.format != 'auto':
        return [Source(file, _kind(file, domain, where)) for file in files]
    for file in files:
        refuse_pointer(file)
    _refuse_data_sets_below(files, where)
    contents = {file: look_into(file) for file in files}
    _skip(skipped, 'empty', (file for file, content in contents.items() if content.kind == 'empty'))
    contents = {file: content for file, content in contents.items() if content.kind != 'empty'}
    records = {file: content for file, content in contents.items() if _is_records(file, content, domain)}
    if len(records) == len(contents):
        return [Source(file, content.kind if content.kind in _KINDS else 'jsonl') for file, content in records.items()]
    if records:
        other = next(file for file in contents if file not in records)
        raise ValueError(
            f'{where} holds both record files ({next(iter(records))}) and others ({other}); choose with glob, '
            "e.g. '**/*.jsonl', or set format: folder to take each file as one document"
        )
    if all(content.kind in ('jsonl', 'json') and content.record is not None for content in contents.values()):
        file, content = next(iter(contents.items()))
        raise no_text(domain, file, content.record or {}, ', or format: folder to take each file as a document')
    if contents and all(content.kind == 'strings' for content in contents.values()):
        raise _strings(next(iter(contents)), domain)
    if all(map(_is_table, contents)):  # a single one among others is a document like them
        raise _table(next(iter(contents)), where)
    return [Source(file, 'txt' if _ending(file) == 'txt' else 'file') for file in contents]


def _files_of(folder: Path, domain: Domain, where: str, skipped: Skipped) -> list[str]:
    pattern = (domain.glob or '**/*').split('/')
    files: list[str] = []
    for path in walk_files(str(folder)):
        parts = os.path.relpath(path, folder).split(os.sep)
        if is_hidden(parts):
            _skip(skipped, 'hidden', [path])
        elif not _matches(parts, pattern):
            _skip(skipped, f'not matched by glob {domain.glob!r}', [path])
        elif not os.path.isfile(path):
            _skip(skipped, 'links to nothing or no files', [path])
        else:
            files.append(path)
    if not files:
        raise ValueError(f'{where} holds no file' + (f' that matches glob {domain.glob!r}' if domain.glob else ''))
    return sorted(files)


def _refuse_data_sets_below(files: Sequence[str], where: str) -> None:
    """Raises for a folder of saved data sets: their shards are no text, and what describes them is."""
    above = {os.path.dirname(file) for file in files if os.path.basename(file) in (*_HF_MARKERS, 'index.json')}
    saved = sorted(folder for folder in above if _is_saved(Path(folder)) or _is_mds(Path(folder)))
    if saved:
        raise ValueError(
            f'{where} holds data sets, such as {saved[0]}, whose files are no text; list each as a path of its '
            'own, or leave them out by a glob'
        )
    if arrow := [file for file in files if file.endswith(_ARROW)]:
        raise _arrow(arrow[0], where)


def _arrow(path: str, where: str) -> ValueError:
    """The error for Arrow files, which the datasets library keeps in its cache."""
    return ValueError(
        f'{where}: {path} is an Arrow file; write it as a data set first, with '
        f"datasets.load_dataset('arrow', data_files={path!r}, split='train').save_to_disk('FOLDER')"
    )


def _is_saved(folder: Path) -> bool:
    return (folder / _HF_MARKERS[1]).exists() or all((folder / file).exists() for file in (_HF_MARKERS[0], _HF_STATE))


def _is_mds(folder: Path) -> bool:
    return (folder / 'index.json').is_file() and any(folder.glob('shard.00000.mds*'))  # compressed or not


def _is_records(path: str, content: Content, domain: Domain) -> bool:
    """Whether a file of a folder holds records: by what it is, or for JSON by the text key that its records have.

    A folder of source code holds JSON too, which is then a document like the others.
    """
    if content.kind == 'parquet' or (_ending(path) == 'jsonl' and not _plain_name(path).endswith('.json')):
        return True
    if content.kind not in ('jsonl', 'json'):
        return False
    return content.record is not None and find_field(content.record, domain.text_key) is not MISSING


def _plain_name(path: str) -> str:
    name = os.path.basename(path).lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    return name


def _ending(path: str) -> str | None:
    name = _plain_name(path)
    return next((kind for kind, endings in _ENDINGS.items() if name.endswith(endings)), None)


def _kind(path: str, domain: Domain, where: str) -> str:
    refuse_pointer(path)
    if domain.format == 'folder':
        return 'file'
    if domain.format in ('hf', 'mds'):
        made_by = {'hf': 'datasets.Dataset.save_to_disk', 'mds': 'streaming.MDSWriter'}[domain.format]
        raise ValueError(f'{where} is a file; format {domain.format} reads a folder written by {made_by}')
    if domain.format == 'txt':
        return 'txt'
    content, ending = look_into(path), _ending(path)
    if domain.format != 'auto' and (content.kind == 'parquet') != (domain.format == 'parquet'):
        holds = 'is a Parquet file' if content.kind == 'parquet' else 'is no Parquet file'
        raise ValueError(f'{where}: format is {domain.format}, but {path} {holds}; set format: auto')
    if content.kind == 'parquet':
        return 'parquet'
    if content.kind == 'strings' and ending != 'txt':
        raise _strings(path, domain)
    if domain.format == 'jsonl' or ending == 'jsonl':
        return 'json' if content.kind == 'json' else 'jsonl'
    if content.kind in ('jsonl', 'json') and (ending is None or _is_records(path, content, domain)):
        return content.kind
    if content.kind == 'jsonl' and ending == 'txt':
        raise no_text(domain, path, content.record or {}, ', or format: txt to take it as plain text')
    if _is_table(path):
        raise _table(path, where)
    if path.endswith(_ARROW):
        raise _arrow(path, where)
    if ending is None:
        if content.kind == 'binary':
            raise ValueError(f'{where}: {path} cannot be read as text ({NO_TEXT})')
        raise ValueError(
            f'{where}: the format of {path} cannot be told from its name or content; set format to one of jsonl, '
            'txt, parquet, or folder (a file is a document)'
        )
    return ending


def _strings(path: str, domain: Domain) -> ValueError:
    """The error for a JSON list of strings, which would be read with its quotes."""
    wrap = WRAP.format(domain.text_key)
    return ValueError(f'domains.{domain.name}: {path} is a list of strings, not of records; {wrap}')


def _is_table(path: str) -> bool:
    return _plain_name(path).endswith(_TABLES)


def _table(path: str, where: str) -> ValueError:
    """The error for a table in the place of text."""
    return ValueError(
        f'{where}: {path} is a table, and its text would be read with all that separates the cells; write it as '
        "JSON lines first, for example pandas.read_csv(FILE).to_json('FILE.jsonl', orient='records', lines=True)"
    )


def no_text(domain: Domain, path: str, record: Mapping[str, Any], more: str = '') -> ValueError:
    """The error for records without the field that is to hold their text, shown by one of them."""
    found = f'domains.{domain.name}: {path} has no {domain.text_key!r}, only {", ".join(field_names(record))}'
    for name, value in record.items():
        if isinstance(value, list) and value and find_field(value[0], domain.text_key) is not MISSING:
            return ValueError(
                f'{found}; its records are in the list {name!r}: write that list alone, for example with '
                f"jq -c '.{name}[]' FILE.json > FILE.jsonl"
            )
    return ValueError(f'{found}; set text_key to the one that holds the text{more}')
