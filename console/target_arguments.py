"""Where commands that send callbacks send them, and who signs: the arguments that they share."""

import argparse
from typing import Final
from urllib.parse import urlsplit

from maskline.console.account import find_account
from maskline.console.running_dev import find_dev_url
from maskline.console.simulate.player import Target
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import Settings
from maskline.schemas.settings.url_types import hide_secrets

DEFAULT_URL: Final = "http://127.0.0.1:8080/callbacks"


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--url`, `--auth-id`, `--auth-token` and `--signed-url`."""
    where = parser.add_argument_group("where to")
    where.add_argument(
        "--url",
        help=f"the callback URL (default: that of maskline dev in this directory, else {DEFAULT_URL})",
    )
    where.add_argument("--auth-id", help="sign as this account (default: the first of MASKLINE_AUTH_TOKENS)")
    where.add_argument("--auth-token", help="sign with this token; other users of the machine can see it")
    where.add_argument(
        "--signed-url",
        help="what the signature covers, if not the URL dialled (default: MASKLINE_PUBLIC_URL and the path)",
    )


def read_target(arguments: argparse.Namespace, settings: Settings, command: str) -> Target:
    """The target that these arguments of `command` name. Raises ConfigError for a URL that is none, or no account."""
    url = arguments.url if arguments.url is not None else find_dev_url() or DEFAULT_URL
    signed = arguments.signed_url
    if not _dialable(url):
        raise ConfigError(_no_url(command, "--url", url))
    if signed is None and settings.public_url:
        signed = settings.public_url + urlsplit(url).path
    if signed is not None and not _dialable(signed):
        raise ConfigError(_no_url(command, "--signed-url", signed))
    account = find_account(settings, arguments.auth_id, arguments.auth_token)
    return Target(url, account.auth_token, signed_url=signed)


def _no_url(command: str, option: str, url: str) -> str:
    return f"{command}: {option} must be a URL as {DEFAULT_URL}, not {hide_secrets(url)!r}"


def _dialable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
