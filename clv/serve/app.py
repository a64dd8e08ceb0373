"""The builder that the Serve files name: `import_path: clv.serve.app:build_app`."""

# No `from __future__ import annotations` here: Serve validates `args` by the class in the signature, not by its name.
import os

from ray.serve import Application

from clv.serve.deployments import AppArgs, ClvService


def build_app(args: AppArgs) -> Application:
    """The application of a Serve file's `args:`, completed from CLV_BUNDLE, CLV_REGISTRY and CLV_STORE."""
    complete = AppArgs.complete(args, os.environ)
    return ClvService.bind(complete.model_dump(mode="json"))
