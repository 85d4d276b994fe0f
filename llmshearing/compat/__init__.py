"""Every touch of another library's internals, and every difference between its versions: a module per library.

The rest of the package asks these modules what a library is like and never asks for a version. Each function has a
canary in ``tests/compat`` that fails under its name when the library changes.
"""
