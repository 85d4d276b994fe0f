"""Dynamic batch loading: domain weights that follow the per-domain losses."""

from llmshearing.callbacks.dynamic_batch_loading.dynamic_batch_loading import DynamicBatchLoading

__all__ = ['DynamicBatchLoading']
