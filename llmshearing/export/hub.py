"""Upload of a finished folder to the Hugging Face Hub.

The login is looked at before the export, so that hours of work do not end in a missing token. The token comes from this
machine's login or the environment (``HF_TOKEN``), through ``huggingface_hub``; it is no option of ours, so it is in no
shell history and no log. New repositories are private: a model is easily published later, and never unpublished.
"""

from __future__ import annotations

from pathlib import Path

from llmshearing.compat.huggingface_hub import HUB_COMMAND, LOGIN_COMMAND

__all__ = ['check_login', 'push_folder']


def check_login(repo: str) -> None:
    """Asks the Hub who we are.

    Args:
        repo (str): Repository to be pushed to, ``name`` or ``owner/name``.

    Raises:
        ValueError: For a name that cannot be a repository's, without a valid token, or if the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo)
    try:
        HfApi().whoami()
    except OSError as error:  # no token, a refused one, offline, unreachable: each is an OSError
        raise ValueError(
            f'--push-to-hub {repo}: the Hugging Face Hub does not know this machine ({type(error).__name__}); run '
            f'`{LOGIN_COMMAND}` with a token that may write, or set HF_TOKEN. Nothing was exported yet.'
        ) from error


def push_folder(folder: Path, repo: str, public: bool = False) -> str:
    """Uploads a model folder; a repository that does not exist is made, one that does keeps its visibility.

    Args:
        folder (Path): What to upload, all of it, as one commit.
        repo (str): ``name`` or ``owner/name``.
        public (bool): Make a new repository public. Default: ``False``, private.

    Returns:
        str: Address of the repository.

    Raises:
        ValueError: If the Hub refuses; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repo, repo_type='model', private=not public, exist_ok=True)
        api.upload_folder(
            folder_path=str(folder), repo_id=url.repo_id, repo_type='model', commit_message='Upload model'
        )
    except OSError as error:
        again = f'{HUB_COMMAND} upload {repo} {folder}' + ('' if public else ' --private')
        raise ValueError(
            f'--push-to-hub {repo}: {type(error).__name__}: {error}. The export itself is complete in {folder}; '
            f'push it again with `{again}`.'
        ) from error
    return str(url)
