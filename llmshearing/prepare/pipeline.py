"""`prepare`: raw text of any number of domains to tokenized MDS splits, the same bytes whoever does the work.

Three passes. *Scan* reads everything and keeps 24 bytes per document. *Plan* drops duplicates and gives each document
its split (see :mod:`llmshearing.prepare.plan`). *Tokenize* reads again, tokenizes only what a split wants, and
shards are cut from the result. Reading twice costs a few per cent of tokenizing once, and buys: bad input is reported
before hours of work, budgets are random samples of the whole input, nothing is tokenized in vain, memory stays flat.

Every pass is journaled in the working folder under a name that is a hash of all that decides its result, so a run that
is started again continues, and one that asks for something else starts afresh. Finished folders are renamed into place
and ``manifest.json`` is written last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing import __version__
from llmshearing.prepare.pack import check_writer_options, write_samples
from llmshearing.prepare.plan import BINS, mark_duplicates
from llmshearing.prepare.pool import WorkerPool
from llmshearing.prepare.publish import (
    claim_local,
    claim_remote,
    find_finished,
    in_place,
    locked,
    publish,
    publish_manifest,
    read_state,
    write_state,
)
from llmshearing.prepare.remote import check_remote
from llmshearing.prepare.spec import Spec, parse_spec
from llmshearing.prepare.stages import VERSION, Context, Input, digest, find_input, plan, scan, tokenize, too_small
from llmshearing.prepare.tokenizer import plan_tokenizer
from llmshearing.prepare.worker import start
from llmshearing.utils.files import NO_ROOM
from llmshearing.utils.paths import is_hidden

__all__ = ['prepare']

log = logging.getLogger(__name__)


def prepare(
    spec: Mapping[str, Any] | Spec,
    *,
    documents: Mapping[str, Iterable[str]] | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Tokenizes and packs the documents of every domain into ``OUT/{split}/{domain}`` and writes ``OUT/manifest.json``.

    Args:
        spec (Mapping | Spec): See :class:`llmshearing.prepare.spec.Spec` for the keys.
        documents (Mapping[str, Iterable[str]] | None): Texts of further domains by name, for documents that are made in
            Python. They are first written to a file in the working folder.
        workers (int | None): Worker processes; default: one for each core this process may use. The result does not
            depend on it.
        overwrite (bool): Replace folders of the same name that another run left in ``OUT``. Default: refuse. At a
            remote address all of the other data set's indexes are emptied first.
        progress (bool): Show progress bars on a terminal.

    Returns:
        dict[str, Any]: The manifest.

    Raises:
        ValueError: For a wrong spec or input, saying what to change.
        OSError: If the disk is full or fails; finished work is kept and nothing looks complete that is not.
    """
    if documents is not None:
        spec = _with_documents(spec, documents)
    spec = spec if isinstance(spec, Spec) else parse_spec(spec)
    if workers is not None and workers < 1:
        raise ValueError(f'workers is {workers}; expected at least 1')
    try:
        return _prepare(spec, workers or len(os.sched_getaffinity(0)), overwrite, progress)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OSError(
            error.errno,
            f'{os.strerror(error.errno)}; nothing unfinished was left in place. Make room (the '
            'output and as much again for the largest domain) and run again: finished work is kept',
            error.filename or spec.work,
        ) from error


def _with_documents(spec: Mapping[str, Any] | Spec, documents: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Writes documents made in Python to files that are named by their content, and adds these to the spec."""
    if isinstance(spec, Spec):
        raise ValueError('documents come with a spec that is a mapping, not with a checked Spec')
    domains = dict(spec.get('domains') or {})
    for name in documents:
        if name in domains:
            raise ValueError(f'domain {name!r} is in the spec and in documents; give it once')
        domains[name] = 'to be written'
    folder = Path(parse_spec({**spec, 'domains': domains}).work) / 'documents'
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in documents.items():
        content, new = hashlib.sha256(), folder / f'{name}.new'
        with open(new, 'wb') as file:
            for text in texts:
                line = json.dumps({'text': text}).encode() + b'\n'
                content.update(line)
                file.write(line)
        path = folder / f'{name}-{content.hexdigest()[:16]}.jsonl'
        os.utime(new, ns=(0, 0))  # the same content is the same input, whenever it was written
        os.replace(new, path)
        domains[name] = str(path)
    return {**spec, 'domains': domains}


def _refuse_own_output(spec: Spec, inputs: Iterable[Input]) -> None:
    """Raises a ValueError where what is written would be read as text, now or the next time."""
    if spec.out is None:
        return
    out, work = Path(spec.out).resolve(), Path(spec.work).resolve()
    for item in inputs:
        read = [Path(source.path).resolve() for source in item.sources if source.kind not in ('mds', 'hf')]
        whole = [Path(path).resolve() for path in item.domain.path if item.domain.glob is None and Path(path).is_dir()]
        inside = [path for path in read if path.is_relative_to(out) and not path.is_relative_to(work)]
        inside += [
            path for path in whole if read and out.is_relative_to(path) and not is_hidden(out.relative_to(path).parts)
        ]
        if inside:
            raise ValueError(
                f'domains.{item.domain.name}: {inside[0]} and out, {spec.out}, lie in one another, so what is written '
                'would be read as text; choose another out, or leave it out by a glob'
            )


def _prepare(spec: Spec, workers: int, overwrite: bool, progress: bool) -> dict[str, Any]:
    inputs = [find_input(domain) for domain in spec.domains]
    _refuse_own_output(spec, inputs)
    tokenizer = plan_tokenizer(spec.tokenizer, spec.bos, spec.eos)
    if tokenizer.bos is None and tokenizer.eos is None:
        log.warning('Neither bos nor eos is put between documents: they run into each other.')
    check_writer_options(
        spec.compression, spec.hashes, spec.shard_size, spec.max_seq_len * np.dtype(tokenizer.dtype).itemsize
    )
    if spec.remote:
        check_remote(spec.remote)
    places = ('out', 'remote', 'work', 'tokenizer')
    decisive = {name: value for name, value in asdict(spec).items() if name not in places}
    key = digest([VERSION, [item.key for item in inputs], tokenizer.fingerprint, tokenizer.chat_template, decisive])
    work = Path(spec.work)
    with locked(work):
        manifest = find_finished(spec, key, overwrite)
        if manifest is None:
            with WorkerPool(workers, start, tokenizer) as pool:
                manifest = _run(inputs, Context(spec, tokenizer, key, pool, progress))
        shutil.rmtree(work)
    return manifest


def _run(inputs: list[Input], context: Context) -> dict[str, Any]:
    spec, work = context.spec, Path(context.spec.work)
    for item in inputs:
        scan(item, context)
    mark_duplicates([item.scan_path(context) for item in inputs], work / 'duplicates.bin')
    counts = [item.counts['documents'] for item in inputs]
    flags = np.split(np.memmap(work / 'duplicates.bin', np.uint8, 'r'), np.cumsum(counts)[:-1])
    for item, duplicate in zip(inputs, flags):
        plan(item, context, duplicate)
    _warn_of_small_disk(inputs, context)
    claim_local(spec)
    if spec.remote:
        claim_remote(spec, spec.remote, context.key)
    entries = {item.domain.name: _finish(item, context, duplicate) for item, duplicate in zip(inputs, flags)}
    manifest = _manifest(context, inputs, entries)
    publish_manifest(spec, json.dumps(manifest, indent=2) + '\n')
    return manifest


def _warn_of_small_disk(inputs: list[Input], context: Context) -> None:
    """Compares what the ids will take with what is free, before the long part of the work."""
    spec, itemsize = context.spec, np.dtype(context.tokenizer.dtype).itemsize
    sizes = [item.chosen_bytes * item.rate().mean * itemsize for item in inputs]
    need = max(sizes) + (0 if spec.compression else sum(sizes) if spec.out else max(sizes))
    free = shutil.disk_usage(spec.work).free
    if need > free:
        log.warning(
            '%.1f GB will be needed in %s, where %.1f GB are free. Set work or out to a larger disk, or make '
            'room: should it run full, the same command continues.',
            need / 1e9,
            spec.work,
            free / 1e9,
        )


def _finish(item: Input, context: Context, duplicate: np.ndarray) -> dict[str, Any]:
    """Makes the shards of a domain unless they are there, and puts them in place."""
    spec, name = context.spec, item.domain.name
    shards = Path(spec.work) / f'{name}-{context.key}.shards'
    splits = read_state(spec, item.domain, context.key)
    if splits is None or not all((shards / split).exists() or in_place(spec, split, name) for split in splits):
        splits = _pack(item, context, duplicate, shards)
        write_state(spec, item.domain, context.key, splits)
    for split in splits:
        if (shards / split).exists():
            publish(spec, shards, split, name)
    return splits


def _pack(item: Input, context: Context, duplicate: np.ndarray, shards: Path) -> dict[str, Any]:
    """Tokenizes a domain and writes its shards; returns its entry of the manifest."""
    spec, dtype = context.spec, context.tokenizer.dtype
    journal, used = tokenize(item, context, duplicate)
    lengths = [length // np.dtype(dtype).itemsize for length in journal.lengths]
    splits = {}
    for index, split in enumerate(spec.splits):
        budget = spec.budget(item.domain, split)
        if budget == 0:
            continue
        samples = lengths[index] // spec.max_seq_len
        if not samples:
            raise too_small(item, split.name, lengths[index], spec)
        write_samples(
            journal.paths[index],
            shards / split.name,
            samples,
            spec.max_seq_len,
            dtype,
            compression=spec.compression,
            hashes=spec.hashes,
            shard_size=spec.shard_size,
        )
        tokens = samples * spec.max_seq_len
        start = int(item.ends[index - 1]) if index else 0
        splits[split.name] = {
            'samples': samples,
            'tokens': tokens,
            'documents': used[index],
            'documents_over_budget': item.chosen[index] - used[index],
            'tokens_dropped': lengths[index] - tokens,
            'budget_tokens': budget,
            'budget_met': budget is None or tokens >= budget,
            'hash_interval': [start / BINS, int(item.ends[index]) / BINS],
        }
        if budget is not None and tokens < budget:
            log.warning(
                'domains.%s, split %s: budget missed, %s of %s tokens', item.domain.name, split.name, tokens, budget
            )
    journal.remove()
    return splits


def _manifest(context: Context, inputs: list[Input], entries: dict[str, Any]) -> dict[str, Any]:
    spec, tokenizer, domains = context.spec, context.tokenizer, {}
    for item in inputs:
        counts, splits = item.counts, entries[item.domain.name]
        domains[item.domain.name] = {
            'path': list(item.domain.path),
            'files': len(item.sources),
            'skipped_files': {r: {'count': len(paths), 'example': paths[0]} for r, paths in item.skipped.items()},
            'documents': counts['documents'],
            'bytes': counts['bytes'],
            'duplicates': item.duplicates,
            'empty': counts['empty'],
            'bad_lines': counts['bad'],
            'special_tokens': {'documents': counts['special'], 'example': item.spelled},
            'documents_unassigned': counts['documents'] - item.duplicates - sum(item.chosen),
            'splits': splits,
        }
    totals = {
        split.name: {
            what: sum(entry[split.name][what] for entry in entries.values() if split.name in entry)
            for what in ('samples', 'tokens', 'documents')
        }
        for split in spec.splits
    }
    return {
        'llmshearing': __version__,
        'key': context.key,
        'tokenizer': {
            'name': spec.tokenizer,
            'class': tokenizer.class_name,
            'fingerprint': tokenizer.fingerprint,
            **tokenizer.described,
            'bos_token_id': tokenizer.bos,
            'eos_token_id': tokenizer.eos,
        },
        'max_seq_len': spec.max_seq_len,
        'encoding': f'ndarray:{tokenizer.dtype}:{spec.max_seq_len}',
        'seed': spec.seed,
        'compression': spec.compression,
        'hashes': list(spec.hashes),
        'splits': totals,
        'domains': domains,
    }
