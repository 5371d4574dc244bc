"""An export goes to a hub, private unless it is said otherwise."""

from __future__ import annotations

from pathlib import Path

from consilium.core.errors import ExportError
from consilium.models.hub import short

_MEND = {
    401: "log in with `hf auth login`, or set HF_TOKEN to a token that may write",
    403: "the token may not write there; give a repository of your own, or a token that may write",
    404: "check the name",
}


def push(folder: Path, repository: str, *, public: bool) -> str:
    """Upload a folder to ``OWNER/NAME``, which is made where it is not there; its address.

    A hub that refuses or does not answer is an ExportError, and so is a repository that everybody can read, unless
    ``public``.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    api = HfApi(endpoint=constants.ENDPOINT, library_name="consilium")
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.model_info(repository).private:
            raise ExportError(
                f"{repository} is there already, and everybody can read it. Give another name, make it private on the "
                f"hub, or say --public. {_kept(folder)}"
            )
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by Consilium")
    except ExportError:
        raise
    except HFValidationError as error:
        raise ExportError(f"--push is {repository}, which is no OWNER/NAME: {short(error)}. {_kept(folder)}") from error
    except Exception as error:  # the client has errors of its own and of several network libraries
        status = getattr(getattr(error, "response", None), "status_code", None)
        mend = _MEND.get(status or 0, "check the network and HF_ENDPOINT")
        why = f"refuses {repository} with status {status}" if status else f"cannot be reached for {repository}"
        raise ExportError(f"the hub ({constants.ENDPOINT}) {why} ({short(error)}): {mend}. {_kept(folder)}") from error
    return f"{constants.ENDPOINT}/{repository}"


def _kept(folder: Path) -> str:
    return f"The export stays in {folder}; once that is mended, give the command again with another --out."
