"""Worker processes for `prepare`: plain interpreters at the other end of a pipe.

Not `concurrent.futures`: a pool that is safe beside threads (spawn) imports the user's main script again in every
worker, torch and all, and fails in a script without a guard; its workers outlive a parent that is killed. Not loky: it
does not import the script, but its workers outlive a killed parent too, and both take all tasks at once, where here few
pieces of the input may be in memory. A process that runs this module imports what its tasks need, and leaves when its
pipe closes, which the system does however the parent ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

__all__ = ['WorkerPool']


class WorkerPool:
    """Processes that run functions of importable modules. To be used in a ``with`` block, which ends them.

    Args:
        workers (int): How many.
        initializer (Callable): Run first in each of them, a function of a module.
        *arguments (Any): Its arguments.
    """

    def __init__(self, workers: int, initializer: Callable, *arguments: Any) -> None:
        self.processes: list[subprocess.Popen] = []
        self._pipes: list[Connection] = []
        for _ in range(workers):
            ours, theirs = Pipe()
            command = [sys.executable, '-m', 'llmshearing.prepare.pool', str(theirs.fileno())]
            environment = {
                **os.environ,
                'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
                'USE_TORCH': '0',  # a worker that needs transformers needs its tokenizers only
            }
            self.processes.append(
                subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
            )
            theirs.close()
            self._pipes.append(ours)
        self._setup = (initializer, arguments)
        self._ready = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: Any) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.terminate()  # a worker has nothing to lose
            process.wait()

    def map(self, function: Callable, tasks: Iterable[tuple[Any, tuple]]) -> Iterator[tuple[Any, Any]]:
        """Runs ``function(*arguments)`` for each ``(tag, arguments)`` of ``tasks``.

        Args:
            function (Callable): A function of a module.
            tasks (Iterable[tuple[Any, tuple]]): Read as results are used: at most two for each worker are begun and not
                yet used, so that few are in memory.

        Yields:
            tuple[Any, Any]: Tag and result, in the order of ``tasks``.

        Raises:
            RuntimeError: If a worker died.
            Exception: What the function raised.
        """
        if not self._ready:
            for pipe in self._pipes:
                self._send(pipe, self._setup)
            for pipe in self._pipes:
                self._receive(pipe)
            self._ready = True
        numbered, tags, results = enumerate(tasks), {}, {}
        idle, busy, used, more = list(self._pipes), {}, 0, True
        while more or busy or results:
            while more and idle and len(tags) < 2 * len(self._pipes):
                number, (tag, arguments) = next(numbered, (None, (None, None)))
                if more := number is not None:
                    pipe = idle.pop()
                    self._send(pipe, (function, arguments))
                    tags[number], busy[pipe] = tag, number
            if used in results:
                yield tags.pop(used), results.pop(used)
                used += 1
            elif busy:
                ready: list[Any] = wait(list(busy))
                for pipe in ready:
                    results[busy.pop(pipe)] = self._receive(pipe)
                    idle.append(pipe)

    def _send(self, pipe: Connection, message: Any) -> None:
        try:
            pipe.send(message)
        except BrokenPipeError as error:
            raise self._death(pipe) from error

    def _receive(self, pipe: Connection) -> Any:
        try:
            ok, value = pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._death(pipe) from error
        if not ok:
            raise value
        return value

    def _death(self, pipe: Connection) -> ChildProcessError:
        code = self.processes[self._pipes.index(pipe)].wait()
        return ChildProcessError(
            f'a worker process of prepare died (exit code {code}); if the machine ran out of memory, use fewer '
            '--workers, and a separator where one file is a document of gigabytes; the same command '
            'continues'
        )


def _work(pipe: Connection) -> None:
    """Runs what comes through the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            answer = (True, function(*arguments))
        except Exception as error:  # whatever it is, the parent raises it
            error.add_note(f'in a worker process:\n{traceback.format_exc()}')
            answer = (False, error)
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return


if __name__ == '__main__':
    _work(Connection(int(sys.argv[1])))
