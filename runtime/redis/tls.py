"""Builds the TLS context for connections to Redis from the query of MASKLINE_REDIS_URL.

| option | value |
| --- | --- |
| `ssl_cert_reqs` | `required` (default), `optional` (as good as required) or `none`; `CERT_…` too, in any case |
| `ssl_check_hostname` | `true` (default, unless `ssl_cert_reqs=none`) or `false` |
| `ssl_ca_certs` | whom to trust: a file of PEM certificates; without it and the next two, the system's list |
| `ssl_ca_path`, `ssl_ca_data` | whom else to trust: a directory of hashed certificates, PEM text |
| `ssl_certfile`, `ssl_keyfile` | the client's certificate, and its key if that is in another file |
| `ssl_password` | of the key |
| `ssl_min_version` | `TLSv1.2` (default) or `TLSv1.3` |
| `ssl_ciphers` | as OpenSSL writes them, for TLS 1.2 |

Every error is a ConfigError of one line that names the option and, where there is one, the file; never a password.
"""

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from maskline.schemas.errors import ConfigError
from maskline.schemas.settings.value_types import FLAG

Choice = TypeVar("Choice")

TLS_OPTIONS: Final = (
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_ca_data",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_min_version",
    "ssl_ciphers",
)

_REQUIREMENTS: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    """The context for these options (names from TLS_OPTIONS, no value empty). Raises ConfigError for a wrong one."""
    for name, needed in (("ssl_keyfile", "ssl_certfile"), ("ssl_password", "ssl_certfile")):
        if name in options and needed not in options:
            raise option_error(name, f"needs {needed} as well")
    context = _context_with_authorities(options)
    _set_verification(context, options)
    if "ssl_certfile" in options:
        _load_client_certificate(context, options)
    if (version := options.get("ssl_min_version")) is not None:
        number = version.lower().removeprefix("tls").removeprefix("v").replace("_", ".")
        context.minimum_version = _choice("ssl_min_version", number, _VERSIONS, "TLSv1.2 or TLSv1.3")
    else:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    if (ciphers := options.get("ssl_ciphers")) is not None:
        _load("ssl_ciphers", lambda: context.set_ciphers(ciphers), "")
    return context


def option_error(option: str, what: str) -> ConfigError:
    """The error for an option of MASKLINE_REDIS_URL. `what`: what is wrong, as a predicate."""
    return ConfigError(f"MASKLINE_REDIS_URL: {option} {what}")


def _context_with_authorities(options: Mapping[str, str]) -> ssl.SSLContext:
    """A context that trusts the named authorities, or the system's list where none is named."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    file, folder, text = (options.get(name) for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data"))
    if file is not None:
        _check_readable("ssl_ca_certs", file)
        _load("ssl_ca_certs", lambda: context.load_verify_locations(cafile=file), file)
    if folder is not None:
        # OpenSSL reads it at each handshake only, so it would report nothing here.
        _load("ssl_ca_path", lambda: list(Path(folder).iterdir()), folder)
        _load("ssl_ca_path", lambda: context.load_verify_locations(capath=folder), folder)
    if text is not None:
        _load("ssl_ca_data", lambda: context.load_verify_locations(cadata=text), "")
    if file is folder is text is None:
        context.load_default_certs()
    return context


def _set_verification(context: ssl.SSLContext, options: Mapping[str, str]) -> None:
    requirement = ssl.CERT_REQUIRED
    if (text := options.get("ssl_cert_reqs")) is not None:
        requirement = _choice(
            "ssl_cert_reqs", text.lower().removeprefix("cert_"), _REQUIREMENTS, "none, optional or required"
        )
    check = requirement is not ssl.CERT_NONE
    if (text := options.get("ssl_check_hostname")) is not None:
        try:
            check = FLAG.read(text)
        except ValueError:
            raise option_error("ssl_check_hostname", f"must be {FLAG.allowed}") from None
        if check and requirement is ssl.CERT_NONE:
            raise option_error(
                "ssl_check_hostname", "needs a certificate that is verified: not ssl_cert_reqs=none"
            )
    context.check_hostname = check
    context.verify_mode = requirement


def _load_client_certificate(context: ssl.SSLContext, options: Mapping[str, str]) -> None:
    certificate, key = options["ssl_certfile"], options.get("ssl_keyfile")
    _check_readable("ssl_certfile", certificate)
    option, file = "ssl_certfile", certificate
    if key is not None:
        _check_readable("ssl_keyfile", key)
        option, file = "ssl_keyfile", f"{key} (with {certificate})"
    # Without a password of ours OpenSSL would ask for one at the terminal.
    password = options.get("ssl_password", "")
    _load(option, lambda: context.load_cert_chain(certificate, key, lambda: password), file)


def _choice(option: str, value: str, choices: Mapping[str, Choice], allowed: str) -> Choice:
    try:
        return choices[value]
    except KeyError:
        raise option_error(option, f"must be {allowed}") from None


def _check_readable(option: str, file: str) -> None:
    """Raises ConfigError with the system's reason if the file cannot be read; OpenSSL would not name it."""
    _load(option, lambda: Path(file).open("rb").close(), file)


def _load(option: str, load: Callable[[], object], file: str) -> None:
    shown = f" {file!a}" if file else ""
    try:
        load()
    except ssl.SSLError as error:
        raise option_error(option, f"cannot be used:{shown} {_openssl_reason(error)}") from None
    except OSError as error:
        raise option_error(option, f"cannot be read:{shown} ({error.strerror})") from None
    except (ValueError, TypeError):  # TypeError: PEM text with other than ASCII characters
        raise option_error(option, f"cannot be used:{shown} (it is not what it should be)") from None


def _openssl_reason(error: ssl.SSLError) -> str:
    reason = (getattr(error, "reason", None) or "").replace("_", " ").lower()
    return f"({reason})" if reason else "(OpenSSL cannot read it, or the password of the key is wrong)"
