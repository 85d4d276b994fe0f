"""Which table describes a model type. No modelling code here or in the tables.

How to add a family is said in CONTRIBUTING.md. Families of other packages: :mod:`llmshearing.models.families`.
"""

from __future__ import annotations

from llmshearing.compat.transformers import LEFT_OUT
from llmshearing.models import dense_tables as dense
from llmshearing.models import mixture_tables as mixtures
from llmshearing.models.roles import Family

__all__ = ['TABLES']

# By transformers' model_type. Granite's multipliers are constants of its config and stay as they are. Where a config
# lists kinds of layers and the table names none, any layers may stay, and the exported list says which.
TABLES: dict[str, Family] = {
    'apertus': dense.APERTUS,
    'arcee': dense.ARCEE,
    'cohere2': dense.COHERE2,
    'cwm': dense.LLAMA,
    'ernie4_5': dense.LLAMA,
    'exaone4': dense.EXAONE4,
    'gemma': dense.GEMMA,
    'gemma2': dense.GEMMA2,
    'gemma3_text': dense.GEMMA3,
    'glm': dense.GLM,
    'glm4': dense.GLM4,
    'gpt_neox': dense.GPT_NEOX,
    'gpt_oss': mixtures.GPT_OSS,
    'granite': dense.LLAMA,
    'granite_swa': dense.GRANITE_SWA,
    'granitemoehybrid': dense.GRANITE_HYBRID,
    'granitemoehybrid-experts': mixtures.GRANITE_EXPERTS,
    'hunyuan_v1_dense': dense.HUNYUAN,
    'hyperclovax': dense.HYPERCLOVAX,
    'jais2': dense.JAIS2,
    'lfm2': dense.LFM2,
    'llama': dense.LLAMA,
    'ministral': dense.LLAMA,
    'ministral3': dense.LLAMA,
    'mistral': dense.LLAMA,
    'mixtral': mixtures.MIXTRAL,
    'nemotron': dense.NEMOTRON,
    'olmo2': dense.OLMO2,
    'olmo3': dense.OLMO2,
    'olmo_hybrid': dense.OLMO_HYBRID,
    'olmoe': mixtures.OLMOE,
    'phi3': dense.PHI3,
    'qwen2': dense.LLAMA,
    'qwen2_moe': mixtures.QWEN2_MOE,
    'qwen3': dense.QWEN3,
    'qwen3_5_moe_text': mixtures.QWEN3_5_MOE,
    'qwen3_5_text': dense.QWEN3_5,
    'qwen3_moe': mixtures.QWEN3_MOE,
    'qwen3_next': mixtures.QWEN3_NEXT,
    'seed_oss': dense.LLAMA,
    'smollm3': dense.LLAMA,
    'starcoder2': dense.STARCODER2,
    'vaultgemma': dense.VAULTGEMMA,
}
for _model_type in LEFT_OUT:
    del TABLES[_model_type]
