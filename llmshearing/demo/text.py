"""Real text for the demo, from what every installation of this project already carries.

Nothing is downloaded: the interpreter brings its standard library, and the installed packages bring their docstrings,
descriptions, licences and headers. These are five different kinds of language, which is what a data mixture needs
to be worth re-weighting. Packages are read as files and never imported.

Every random choice comes from ``seed``, files are listed in sorted order, and sources are named relative to the
installation, so the same environment gives the same bytes on any path.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import inspect
import json
import os
import random
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmshearing.demo.duplicates import MAX_CHARS, Document, deduplicate
from llmshearing.utils.files import write_atomically
from llmshearing.utils.interleave import interleave

__all__ = [
    'DOMAINS',
    'Domain',
    'PackageFile',
    'api_documentation',
    'cut',
    'docstring_page',
    'harvest_text',
    'installed_distributions',
    'installed_files',
    'licences',
]

CUT_CHARS = 12_000  # of a document so much is used: many documents make a better held-out split than long ones
MIN_DOCUMENTS = 20  # fewer cannot be split into training and held-out text

SKIPPED_FOLDERS = frozenset(
    'test tests testing idle_test _vendor _vendored vendored site-packages dist-packages encodings pydoc_data lib2to3 '
    '_bundled __pycache__'.split()
)
LICENCE_NAME = re.compile(r'(licen[sc]e|copying|notice|eula|copyright)', re.IGNORECASE)
LICENCE_SUFFIXES = ('', '.txt', '.md', '.rst', '.apache', '.bsd', '.mit', '.apache2', '.external')
RULER = re.compile(r'^[ \t]*[-=*#_~]{10,}[ \t]*$', re.MULTILINE)


class PackageFile(NamedTuple):
    """A file of an installed package: its name relative to the folder of packages, and where it is."""

    name: str
    path: Path


def installed_distributions() -> Iterator[importlib.metadata.Distribution]:
    """Every installed distribution once; not the copies that setuptools carries and shows once it is imported."""
    seen = set()
    for distribution in importlib.metadata.distributions():
        if distribution.name not in seen and '_vendor' not in Path(str(distribution.locate_file(''))).parts:
            seen.add(distribution.name)
            yield distribution


@functools.lru_cache(maxsize=1)
def installed_files() -> tuple[PackageFile, ...]:
    """Every file of every installed distribution but this one, which a checkout lists and an installation does not."""
    files: dict[str, Path] = {}
    for distribution in installed_distributions():
        for file in () if distribution.name == 'llmshearing' else distribution.files or ():
            name = file.as_posix()
            # Scripts live outside the folder of packages, and stubs of editable installs name a path of this machine.
            if not name.startswith(('..', '/', '__editable__')) and name not in files:
                files[name] = Path(file.locate())
    return tuple(PackageFile(name, files[name]) for name in sorted(files) if files[name].is_file())


def _python_source(rng: random.Random) -> Iterator[Document]:
    """Modules of the standard library, without tests and tables of character sets."""
    root = Path(sysconfig.get_path('stdlib'))
    paths = [path for path in sorted(root.rglob('*.py')) if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts)]
    # The build settings hold the paths of the machine the interpreter was compiled on.
    paths = [path for path in paths if not path.name.startswith('_sysconfigdata')]
    rng.shuffle(paths)
    for path in paths:
        text = path.read_text(encoding='utf-8', errors='replace')
        if max(map(len, text.splitlines()), default=0) <= 400:  # longer lines are data, not code
            yield Document(path.relative_to(root).as_posix(), text)


def docstring_page(source: str, title: str) -> str:
    """Turns a module's source code into a page of documentation, empty where it does not parse or has no docstrings.

    The page is its title, the module's docstring, then name, signature and docstring of its parts.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ''
    entries: list[str] = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            is_class = isinstance(child, ast.ClassDef)
            name = f'{prefix}{child.name}'
            docstring = ast.get_docstring(child, clean=False)
            if docstring:
                signature = f'class {name}' if is_class else f'{name}({ast.unparse(child.args)})'
                entries.append(f'{signature}\n\n{inspect.cleandoc(docstring)}')
            if is_class:
                visit(child, f'{name}.')

    visit(tree, '')
    module_docstring = ast.get_docstring(tree)
    if module_docstring:
        entries.insert(0, module_docstring)
    return '\n\n\n'.join([title, *entries]) if entries else ''


def _in_turn(groups: dict[str, list[PackageFile]], rng: random.Random) -> Iterator[PackageFile]:
    """The first of every group, then the second of every group, and so on: a large package does not fill a domain.

    The order of groups, and of files in a group, is by chance.
    """
    shuffled = [groups[name] for name in sorted(groups)]
    rng.shuffle(shuffled)
    for group in shuffled:
        rng.shuffle(group)
    yield from interleave(shuffled)


def api_documentation(rng: random.Random) -> Iterator[Document]:
    """One page per module of the installed packages, from its docstrings."""
    packages: dict[str, list[PackageFile]] = {}
    for file in installed_files():
        parts = file.name.split('/')
        if file.name.endswith('.py') and len(parts) > 1 and SKIPPED_FOLDERS.isdisjoint(parts):
            packages.setdefault(parts[0], []).append(file)
    for file in _in_turn(packages, rng):
        title = file.name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
        source = file.path.read_text(encoding='utf-8', errors='replace')
        if source.count('"""') >= 6:  # two docstrings besides the module's: parsing costs more than looking
            yield Document(file.name, docstring_page(source, title))


def _package_descriptions(rng: random.Random) -> Iterator[Document]:
    """The long description of every installed package: the body of its ``METADATA`` (README and change log)."""
    documents = []
    for distribution in installed_distributions():
        metadata: Any = distribution.metadata  # a message
        body = metadata.get_payload() or metadata.get('Description') or ''
        documents.append(Document(f'{metadata["Name"]}/METADATA', body))
    documents.sort()
    rng.shuffle(documents)
    yield from documents


def licences(rng: random.Random) -> Iterator[Document]:
    """Licence, notice and end-user agreement files; bundles are split at their rulers into the texts they bundle.

    Files of one licence come first and by length, not by chance, so that a common licence is taken whole from a file of
    its own and not as a fragment from a bundle.
    """
    del rng
    singles, fragments = [], []
    for file in installed_files():
        base, suffix = os.path.splitext(file.name.split('/')[-1])
        if LICENCE_NAME.search(base) and suffix.lower() in LICENCE_SUFFIXES:
            text = file.path.read_text(encoding='utf-8', errors='replace')
            sections = RULER.split(text) if len(text) > 25_000 else []
            fragments += [Document(f'{file.name}#{i}', section) for i, section in enumerate(sections)]
            if not sections:
                singles.append(Document(file.name, text))
    for documents in (singles, fragments):
        yield from sorted(documents, key=lambda document: (len(document.text), document.source))


def _cpp_headers(rng: random.Random) -> Iterator[Document]:
    """C++ headers of torch, taken in turn from its folders."""
    folders: dict[str, list[PackageFile]] = {}
    for file in installed_files():
        if file.name.startswith('torch/include/') and file.name.endswith(('.h', '.hpp')):
            folders.setdefault(file.name.rpartition('/')[0], []).append(file)
    for file in _in_turn(folders, rng):
        yield Document(file.name, file.path.read_text(encoding='utf-8', errors='replace'))


class Domain(NamedTuple):
    """How a domain is collected.

    Attributes:
        collect (Callable): Yields its documents in order of preference, given a source of random numbers.
        prose (bool): Whether repeated blocks are cut out of its documents. Code is not cut: it would make no sense.
        cut_chars (int): How much of a long document is used.
    """

    collect: Callable[[random.Random], Iterator[Document]]
    prose: bool
    cut_chars: int = CUT_CHARS


DOMAINS: dict[str, Domain] = {
    'python': Domain(_python_source, prose=False),
    'api_docs': Domain(api_documentation, prose=True),
    'descriptions': Domain(_package_descriptions, prose=True),
    'licences': Domain(licences, prose=True, cut_chars=MAX_CHARS),  # too little text to leave any out
    'cpp': Domain(_cpp_headers, prose=False),
}


def cut(text: str, max_chars: int) -> str:
    """The beginning of a text, up to the last end of a block (or of a line) within ``max_chars`` characters."""
    if len(text) <= max_chars:
        return text
    head = text[:max_chars]
    end = max(head.rfind('\n\n'), 0) or max(head.rfind('\n'), 0) or max_chars
    return head[:end].rstrip('\n') + '\n'


def harvest_text(
    out: Path, seed: int = 17, max_chars: int = 2_000_000, domains: Iterable[str] | None = None
) -> dict[str, dict[str, int]]:
    """Writes ``out/DOMAIN.jsonl`` for every domain, one ``{"text": ..., "source": ...}`` a line.

    Args:
        out (Path): Folder to write into; files of the same name are replaced once the new one is complete.
        seed (int): Seed of the order of documents.
        max_chars (int): A domain ends with the document that reaches this many characters.
        domains (Iterable[str] | None): Which of ``DOMAINS`` to write; all by default.

    Returns:
        dict[str, dict[str, int]]: Per domain the number of ``documents`` and ``chars`` written.

    Raises:
        ValueError: Unknown domain, ``max_chars`` not positive, or a domain with fewer than 20 documents.
    """
    names = list(DOMAINS) if domains is None else list(domains)
    unknown = sorted(set(names) - set(DOMAINS))
    if unknown or not names:
        raise ValueError(f'domains to harvest: got {names}, unknown {unknown}; choose from {list(DOMAINS)}')
    if max_chars <= 0:
        raise ValueError(f'max_chars must be positive, got {max_chars}; 2000000 gives about half a million tokens')
    found: dict[str, list[Document]] = {}
    for name in names:
        domain = DOMAINS[name]
        found[name] = []
        chars = 0
        for document in deduplicate(domain.collect(random.Random(f'{seed}/{name}')), domain.prose):
            found[name].append(document._replace(text=cut(document.text, domain.cut_chars)))
            chars += len(found[name][-1].text)
            if chars >= max_chars:
                break
        if len(found[name]) < MIN_DOCUMENTS and chars < max_chars:
            raise ValueError(
                f'domain {name!r}: found {len(found[name])} documents in this installation, need at least '
                f'{MIN_DOCUMENTS}; leave it out with domains={[n for n in names if n != name]}'
            )
    for name, documents in found.items():
        # The order of collection may be by length; the order in the file should not be.
        random.Random(f'{seed}/{name}/order').shuffle(documents)
        lines = (json.dumps(document._asdict(), ensure_ascii=False) + '\n' for document in documents)
        write_atomically(Path(out) / f'{name}.jsonl', ''.join(lines))
    return {
        name: {'documents': len(documents), 'chars': sum(len(document.text) for document in documents)}
        for name, documents in found.items()
    }
