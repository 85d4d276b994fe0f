"""Settings shared by all tests: no network, two threads, and quiet libraries."""
import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
