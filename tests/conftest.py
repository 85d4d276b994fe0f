"""Settings shared by all tests: no network, no GPU, and one thread, set before torch is imported.

One thread, because a process that has run OpenMP on several cannot fork children that compute: they wait for threads that
the fork did not copy. Tests that kill training at random fork it.
"""
import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
os.environ.setdefault('OMP_NUM_THREADS', '1')
