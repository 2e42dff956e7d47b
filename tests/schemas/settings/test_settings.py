import contextlib
import io
import ipaddress
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from example_counts import examples
from hypothesis import assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from maskline.console import settings as settings_command
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import SETTINGS, Settings, load_settings, read_settings
from maskline.schemas.settings.url_types import hide_password

ROOT = Path(__file__).parents[3]
SECRET = "s3cr3t-w0rd"


def refused(environ, **overrides):
    """The one line of a refusal."""
    with pytest.raises(ConfigError) as caught:
        load_settings(environ, **overrides)
    line = str(caught.value)
    assert "\n" not in line
    assert line.isprintable()
    assert line.isascii()
    return line


def test_the_defaults_of_the_contract():
    assert load_settings({}) == Settings()
    contract = {
        "redis_url": "", "namespace": "maskline", "partitions": 64, "port": 8080,
        "host": "0.0.0.0",  # noqa: S104 - the contract's default
        "admin_host": "127.0.0.1", "admin_port": None, "public_url": "", "trusted_proxies": (),
        "auth_tokens": (), "verify": "on", "accept_v2": False, "durability": "memory",
        "publish_timeout_ms": 500, "spool_dir": Path("./spool"), "spool_max_bytes": 2**30,
        "spool_drain_per_s": 5000,
        "max_body_bytes": 65536, "group": "workers", "handlers": ("maskline.handlers.log",), "gap_timeout_ms": 5000,
        "gap_spool_ms": 60_000,
        "first_sequence": 1, "recording_sequence": "own", "late": "deliver", "session_ttl_s": 86400,
        "lease_ttl_ms": 5000, "concurrency": 256, "retention_s": 3600, "retention_max_entries": 1_000_000,
        "log_format": "auto", "log_level": "info", "config": None,
    }  # fmt: skip
    assert {field: getattr(Settings(), field) for field in contract} == contract


GOOD = [
    ("REDIS_URL", "redis://localhost", "redis://localhost"),
    (
        "REDIS_URL",
        "rediss://user:p%40ss@redis.example.com:6380/3",
        "rediss://user:p%40ss@redis.example.com:6380/3",
    ),
    ("REDIS_URL", "unix:///run/valkey.sock?db=2", "unix:///run/valkey.sock?db=2"),
    ("REDIS_URL", "unix://:pw@/run/valkey.sock", "unix://:pw@/run/valkey.sock"),
    ("REDIS_URL", "redis://[::1]:6379/0", "redis://[::1]:6379/0"),
    ("REDIS_URL", "redis+sentinel://[fe80::1%25eth-0.1]:1,b/m", "redis+sentinel://[fe80::1%25eth-0.1]:1,b/m"),
    ("REDIS_URL", "redis+cluster://a:7000,b:7001", "redis+cluster://a:7000,b:7001"),
    ("REDIS_URL", "redis+cluster://a:7000,[::1]:1", "redis+cluster://a:7000,[::1]:1"),
    ("REDIS_URL", "redis+sentinel://a:26379,b:26379/main/0", "redis+sentinel://a:26379,b:26379/main/0"),
    ("NAMESPACE", "prod.eu-1_a", "prod.eu-1_a"),
    ("PARTITIONS", "16384", 16384),
    ("HOST", "::", "::"),
    ("HOST", "[::1], localhost,,10.0.0.7\nfe80::1%eth0", "::1,localhost,10.0.0.7,fe80::1%eth0"),
    ("ADMIN_HOST", "[::]", "::"),
    ("PORT", " 80 ", 80),
    ("PORT", "0", 0),
    ("ADMIN_PORT", "9999", 9999),
    ("PUBLIC_URL", "https://hooks.example.com/", "https://hooks.example.com"),
    ("PUBLIC_URL", "http://[::1]:8080", "http://[::1]:8080"),
    ("PUBLIC_URL", "https://example.com/plivo/", "https://example.com/plivo"),
    ("PUBLIC_URL", " HTTPS://example.com\n", "https://example.com"),
    (
        "TRUSTED_PROXIES",
        "10.0.0.0/8, ::1,192.0.2.1, [fd00::]/8",
        tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "::1", "192.0.2.1", "fd00::/8"))),
    ),
    ("AUTH_TOKENS", "MA1:one, MA1:two,SA2:thr:ee,", (("MA1", "one"), ("MA1", "two"), ("SA2", "thr:ee"))),
    ("AUTH_TOKENS", "MA1:one\nMA1:one\nSA2:two", (("MA1", "one"), ("SA2", "two"))),
    ("VERIFY", "OFF", "off"),
    ("ACCEPT_V2", "True", True),
    ("ACCEPT_V2", "0", False),
    ("DURABILITY", "fsync", "fsync"),
    ("DURABILITY", "replicas:02", "replicas:2"),
    ("SPOOL_DIR", "/var/spool/maskline", Path("/var/spool/maskline")),
    ("SPOOL_MAX_BYTES", "1 GiB", 2**30),
    ("SPOOL_MAX_BYTES", "512MiB", 2**29),
    ("SPOOL_MAX_BYTES", "2 gb", 2_000_000_000),
    ("SPOOL_MAX_BYTES", "1048576", 2**20),
    ("MAX_BODY_BYTES", "1_048_576", 2**20),
    ("HANDLERS", "my_handlers.fares, ./more/refunds.py", ("my_handlers.fares", "./more/refunds.py")),
    ("GAP_TIMEOUT_MS", "0", 0),
    ("IGNORED_PARAMETERS", "Attempt, via,,EventTimestamp\nvia", ("Attempt", "via", "EventTimestamp")),
    ("LOG_LEVEL", "WARNING", "warning"),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_good_values(name, text, value):
    settings, sources = read_settings({f"MASKLINE_{name}": text})
    assert getattr(settings, name.lower()) == value
    assert sources[name.lower()] == "environment"
    assert set(sources.values()) == {"default", "environment"}


WRONG = [
    ("IGNORED_PARAMETERS", "SequenceNumber"),
    ("IGNORED_PARAMETERS", "Attempt\x07"),
    ("IGNORED_PARAMETERS", "n" * 129),
    ("REDIS_URL", "localhost:6379"),
    ("REDIS_URL", "http://localhost"),
    ("REDIS_URL", "redis://"),
    ("REDIS_URL", "redis://h:port/0"),
    ("REDIS_URL", "redis://h/db"),
    ("REDIS_URL", "redis://a:1,b:2"),
    ("REDIS_URL", "redis://h/\n0"),
    ("REDIS_URL", f"redis://:{SECRET}/more@h:1"),
    ("REDIS_URL", "unix://relative"),
    ("REDIS_URL", "redis+sentinel://a:26379"),
    ("HANDLERS", ","),
    ("NAMESPACE", "a b"),
    ("NAMESPACE", "a{b}"),
    ("NAMESPACE", "x" * 65),
    ("NAMESPACE", "maskline\n"),
    ("PARTITIONS", "0"),
    ("PARTITIONS", "16385"),
    ("PORT", "99999"),
    ("PORT", "-1"),
    ("PORT", "8080/tcp"),
    ("PORT", "٨٠"),
    ("PORT", "9" * 5000),
    ("PORT", "1\n2"),
    ("HOST", "a host"),
    ("HOST", ","),
    ("HOST", "0.0.0.0:8080"),
    ("HOST", "[::1]:8080"),
    ("HOST", "[localhost]"),
    ("ADMIN_HOST", "::1::"),
    ("PUBLIC_URL", "hooks.example.com"),
    ("PUBLIC_URL", "ftp://hooks.example.com"),
    ("PUBLIC_URL", "https://hooks.example.com?x=1"),
    ("PUBLIC_URL", "https://hooks.example.com/#x"),
    ("PUBLIC_URL", "https://hooks.example.com:port"),
    ("PUBLIC_URL", "https://hooks.example.com/callbacks"),
    ("PUBLIC_URL", "https://hooks.example.com/callbacks/MA1/"),
    ("PUBLIC_URL", "https://"),
    ("PUBLIC_URL", f"https://user:{SECRET}@hooks.example.com"),
    ("PUBLIC_URL", f"https://user:{SECRET}"),
    ("PUBLIC_URL", f"https://user:1/{SECRET}@hooks.example.com"),
    ("PUBLIC_URL", f"https://user:{SECRET}@\u2100.example.com"),
    ("PUBLIC_URL", "https://hooks.example.com/callbacks?a=b"),
    ("SPOOL_DIR", f"redis://:{SECRET}@h/0"),
    ("SPOOL_DIR", "~nobody-of-that-name/spool"),
    ("HANDLERS", f"https://user:{SECRET}@h/handlers.py"),
    ("HOST", f"MA1:{SECRET}"),
    ("NAMESPACE", f"redis://h/?password=x@{SECRET}"),
    ("TRUSTED_PROXIES", "10.0.0.0/33"),
    ("TRUSTED_PROXIES", "fe80::%eth0/64"),
    ("TRUSTED_PROXIES", "10.0.0.1/8"),
    ("TRUSTED_PROXIES", "proxy.example.com"),
    ("AUTH_TOKENS", SECRET),
    ("AUTH_TOKENS", f"MA1:{SECRET},:{SECRET}"),
    ("AUTH_TOKENS", f"MA1:{SECRET} {SECRET}"),
    ("VERIFY", "false"),
    ("ACCEPT_V2", "maybe"),
    ("DURABILITY", "replicas"),
    ("DURABILITY", "replicas:0"),
    ("DURABILITY", "disk"),
    ("SPOOL_MAX_BYTES", "1 XiB"),
    ("SPOOL_MAX_BYTES", "1"),
    ("SPOOL_MAX_BYTES", "-1 GiB"),
    ("SPOOL_DIR", "a\0b"),
    ("MAX_BODY_BYTES", "1 TiB"),
    ("HANDLERS", "my handlers"),
    ("HANDLERS", "a..b"),
    ("GROUP", "ü"),
    ("LOG_LEVEL", "loud"),
    ("LOG_FORMAT", "xml"),
]


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_wrong_values_are_refused_by_name(name, text):
    line = refused({f"MASKLINE_{name}": text})
    assert line.startswith(f"MASKLINE_{name} must be ")
    assert SECRET not in line
    assert len(line) < 300


def test_secrets_never_stand_in_an_error_or_a_repr():
    assert "entry 2 of 2" in refused({"MASKLINE_AUTH_TOKENS": f"MA1:{SECRET},{SECRET}"})
    settings = load_settings(
        {"MASKLINE_AUTH_TOKENS": f"MA1:{SECRET}", "MASKLINE_REDIS_URL": f"redis://u:{SECRET}@h:6379/0"}
    )
    assert SECRET not in f"{settings!r} {settings}"
    assert "MA1:***" in repr(settings)


@pytest.mark.parametrize("scheme", ["redis", "unix", "redis+cluster"])
@given(password=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20))
@hypothesis_settings(max_examples=examples(100), deadline=None)
def test_no_part_of_a_password_is_shown(scheme, password):
    # Marked at both ends, as a cut could leave either.
    secret = f"<{password}>"
    for url in (f"{scheme}://u:{secret}@host:1/0", f"{scheme}:///run/x.sock?db=0&password={secret}"):
        shown = hide_password(url)
        assert "<" not in shown
        assert ">" not in shown
        assert shown.startswith(f"{scheme}://")
    assert hide_password(f"{scheme}://host:1/0") == f"{scheme}://host:1/0"


(PUBLIC_URL,) = (setting for setting in SETTINGS if setting.field == "public_url")
SCHEMES = ["https://", "redis://", "unix://", "tcp://", "HTTP://", ""]
CREDENTIALS = ["user:{}@", ":{}@", "{}@", "user:{}/x@", "user:{}?@", "user:1/{}@", "MA1:{},x@", "user:{}"]
HOSTS = [
    "hooks.example.com",
    "host:1/0",
    "[::1]:80/x",
    "h/callbacks",
    "h/x.py",
    "\u2100.example.com",
    "h/?password={}",
]
SOURCES = ["environment", "argument", "file", "TOML", "name of a file", "name in TOML"]


@given(
    st.sampled_from(SETTINGS), st.sampled_from(SCHEMES), st.sampled_from(CREDENTIALS), st.sampled_from(HOSTS),
    st.sampled_from(["", f"{SECRET}@", f"{SECRET}:é"]), st.sampled_from(SOURCES),
)  # fmt: skip
@example(PUBLIC_URL, "https://", "user:{}", "[::1]:80/x", "", "environment")
@hypothesis_settings(max_examples=examples(400), deadline=None)
def test_no_error_repeats_a_password(setting, scheme, credentials, host, before, source):
    """Wherever a URL was put, and whichever setting it was put into by mistake."""
    assume(scheme or "@" in credentials)
    assume("@" in credentials or "@" not in before)  # what stands behind the last @ is a host
    value = f"{scheme}{credentials}{host}".replace("{}", before + SECRET)
    with TemporaryDirectory() as directory:
        environ, arguments = {}, {}
        file, toml = Path(directory, "value"), Path(directory, "toml")
        match source:
            case "environment":
                environ = {setting.name: value}
            case "argument":
                arguments = {setting.field: value}
            case "file":
                file.write_text(value)
                environ = {f"{setting.name}_FILE": str(file)}
            case "name of a file":
                environ = {f"{setting.name}_FILE": value}
            case _:
                name = setting.name if source == "TOML" else value
                toml.write_text(f"{json.dumps(name)} = {json.dumps(value)}")
                environ = {"MASKLINE_CONFIG": str(toml)}
        try:
            shown = setting.show(getattr(load_settings(environ, **arguments), setting.field))
        except ConfigError as error:
            shown, scheme = str(error), scheme or "any"
    assert SECRET not in shown or not scheme


@pytest.mark.parametrize("name", ["SequenceNumber", "SessionUUID", "EventName"])
def test_what_a_callback_is_about_cannot_be_ignored(name):
    line = refused({"MASKLINE_IGNORED_PARAMETERS": f"Attempt,{name}"})
    assert line.startswith("MASKLINE_IGNORED_PARAMETERS must be names of parameters")
    assert f"{name} always counts, entry 2 of 2" in line
    assert "\n" not in line


def test_unknown_names_are_refused_with_the_nearest():
    assert refused({"MASKLINE_PORTT": "1"}) == "MASKLINE_PORTT is no setting, did you mean MASKLINE_PORT?"
    assert "did you mean MASKLINE_AUTH_TOKENS?" in refused({"MASKLINE_AUTH_TOKEN": SECRET})
    assert "did you mean MASKLINE_AUTH_TOKENS_FILE?" in refused({"MASKLINE_AUTH_TOKEN_FILE": "x"})
    assert "did you mean MASKLINE_CONFIG?" in refused({"MASKLINE_CONFIG_FILE": "x"})
    assert "`maskline settings` lists them all" in refused({"MASKLINE_QQQQQQQ": "1"})
    assert "enableServiceLinks" in refused({"MASKLINE_INGEST_SERVICE_HOST": "10.0.0.1"})
    assert "enableServiceLinks" in refused({"MASKLINE_INGEST_PORT_8080_TCP_ADDR": "10.0.0.1"})
    assert "enableServiceLinks" in refused({"MASKLINE_PORT": "tcp://10.0.0.1:8080"})
    assert load_settings({"PATH": "/bin", "maskline_port": "1", "MASKLINE": "1"}) == Settings()


def test_empty_is_not_set():
    settings, sources = read_settings(
        {"MASKLINE_PORT": "", "MASKLINE_AUTH_TOKENS": " \n", "MASKLINE_CONFIG": ""}
    )
    assert settings == Settings()
    assert set(sources.values()) == {"default"}


def test_a_value_from_a_file(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("MA1:one\nMA2:two\r\n")
    settings, sources = read_settings({"MASKLINE_AUTH_TOKENS_FILE": str(tokens)})
    assert settings.auth_tokens == (("MA1", "one"), ("MA2", "two"))
    assert sources["auth_tokens"] == "MASKLINE_AUTH_TOKENS_FILE"

    both = {"MASKLINE_AUTH_TOKENS_FILE": str(tokens), "MASKLINE_AUTH_TOKENS": "MA1:one"}
    assert "MASKLINE_AUTH_TOKENS and MASKLINE_AUTH_TOKENS_FILE are both set" in refused(both)
    assert refused({"MASKLINE_PORT_FILE": str(tokens)}).endswith("(in the file of MASKLINE_PORT_FILE)")
    assert "cannot read" in refused({"MASKLINE_PORT_FILE": str(tmp_path / "none")})
    assert "cannot read" in refused({"MASKLINE_PORT_FILE": str(tmp_path)})
    assert "none" in refused({"MASKLINE_AUTH_TOKENS_FILE": str(tmp_path / "none")})
    assert SECRET not in refused({"MASKLINE_AUTH_TOKENS_FILE": f"MA1:{SECRET}"})
    assert SECRET not in refused({"MASKLINE_REDIS_URL_FILE": f"redis://:{SECRET}@h"})
    assert "file with text" in refused({"MASKLINE_PORT_FILE": "/dev/zero"})
    tokens.write_text("\n")
    assert "is empty" in refused({"MASKLINE_AUTH_TOKENS_FILE": str(tokens)})
    tokens.write_bytes(b"MA1:\xff" + SECRET.encode())
    assert SECRET not in refused({"MASKLINE_AUTH_TOKENS_FILE": str(tokens)})
    tokens.write_text(SECRET)
    assert SECRET not in refused({"MASKLINE_AUTH_TOKENS_FILE": str(tokens)})


def toml_environ(tmp_path, text, **more):
    path = tmp_path / "maskline.toml"
    path.write_text(text)
    return {"MASKLINE_CONFIG": str(path), **more}


def test_the_toml_file(tmp_path):
    (tmp_path / "url").write_text("redis://from-file\n")
    text = f"""
        MASKLINE_PORT = 8081
        MASKLINE_PARTITIONS = "32"
        MASKLINE_ACCEPT_V2 = true
        MASKLINE_AUTH_TOKENS = ["MA1:one", "MA1:two"]
        MASKLINE_HANDLERS = "a.b,c.d"
        MASKLINE_SPOOL_MAX_BYTES = "2 GiB"
        MASKLINE_GROUP = ""
        MASKLINE_REDIS_URL_FILE = {json.dumps(str(tmp_path / "url"))}
    """
    settings, sources = read_settings(toml_environ(tmp_path, text))
    assert (settings.port, settings.partitions, settings.accept_v2) == (8081, 32, True)
    assert settings.auth_tokens == (("MA1", "one"), ("MA1", "two"))
    assert settings.handlers == ("a.b", "c.d")
    assert settings.spool_max_bytes == 2 << 30
    assert settings.redis_url == "redis://from-file"
    assert settings.config == tmp_path / "maskline.toml"
    assert (sources["port"], sources["group"], sources["config"]) == ("file", "default", "environment")
    assert sources["redis_url"] == "MASKLINE_REDIS_URL_FILE"


def test_the_environment_wins_over_the_toml_file_and_arguments_over_both(tmp_path):
    environ = toml_environ(tmp_path, "MASKLINE_PORT = 1\nMASKLINE_PARTITIONS = 2\nMASKLINE_GROUP = 'a'")
    (tmp_path / "group").write_text("from-file")
    environ |= {"MASKLINE_PORT": "3", "MASKLINE_GROUP_FILE": str(tmp_path / "group")}
    settings, sources = read_settings(
        environ, host="127.0.0.1", port=None, partitions="4", spool_dir=tmp_path
    )
    assert (settings.port, settings.partitions, settings.group) == (3, 4, "from-file")
    assert (settings.host, settings.spool_dir) == ("127.0.0.1", tmp_path)
    assert (sources["port"], sources["partitions"], sources["group"]) == (
        "environment",
        "argument",
        "MASKLINE_GROUP_FILE",
    )
    assert refused({}, port="x").startswith("MASKLINE_PORT must be")
    assert refused({}, port=-1).startswith("MASKLINE_PORT must be")
    assert load_settings({}, port=8081, accept_v2=True, handlers=("a.b",)) == Settings(
        port=8081, accept_v2=True, handlers=("a.b",)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MASKLINE_PORT = true", "MASKLINE_PORT must be a whole number"),
        ("MASKLINE_PORT = 80.5", "MASKLINE_PORT must be a whole number"),
        ("MASKLINE_PORT = -1", "MASKLINE_PORT must be a whole number"),
        ("MASKLINE_ACCEPT_V2 = 1", "MASKLINE_ACCEPT_V2 must be true or false"),
        ("MASKLINE_NAMESPACE = 7", "MASKLINE_NAMESPACE must be"),
        ("MASKLINE_NAMESPACE = ['a']", "MASKLINE_NAMESPACE must be"),
        ("MASKLINE_HANDLERS = [1]", "MASKLINE_HANDLERS must be"),
        ("[MASKLINE_HANDLERS]\na = 1", "MASKLINE_HANDLERS must be"),
        ("MASKLINE_PORT_FILE = 1", "MASKLINE_PORT_FILE must be the path"),
        ("MASKLINE_PORTT = 1", "did you mean MASKLINE_PORT?"),
        ("port = 1", "port is no setting, did you mean MASKLINE_PORT?"),
        ("'a\\nb' = 1", "is no setting"),
        ("MASKLINE_CONFIG = 'x'", "cannot stand in the file"),
        ("MASKLINE_PORT = ", "is no TOML file"),
        (f"MASKLINE_AUTH_TOKENS = ['{SECRET}']", "no colon in it, entry 1 of 1"),
        ("MASKLINE_GROUP = 'a'\nMASKLINE_GROUP_FILE = 'b'", "are both set"),
    ],
)
def test_wrong_toml(tmp_path, text, words):
    line = refused(toml_environ(tmp_path, text))
    assert words in line
    assert SECRET not in line
    assert "maskline.toml" in line


def test_a_toml_file_that_cannot_be_read(tmp_path):
    assert "MASKLINE_CONFIG: cannot read" in refused({"MASKLINE_CONFIG": str(tmp_path / "none.toml")})
    path = tmp_path / "latin.toml"
    path.write_bytes(b"MASKLINE_GROUP = '\xe9'")
    assert "is no TOML file" in refused({"MASKLINE_CONFIG": str(path)})


@given(st.sampled_from([s for s in SETTINGS if s.field != "config"]), st.text(max_size=30))
@hypothesis_settings(max_examples=examples(300), deadline=None)
def test_any_text_is_a_value_or_one_clear_line(setting, text):
    try:
        value = getattr(load_settings({setting.name: text}), setting.field)
    except ConfigError:
        assert refused({setting.name: text}).startswith(f"{setting.name} must be ")
        return
    if text.strip() and not setting.kind.secret:
        # What `maskline settings` shows can be set again.
        shown = setting.show(value)
        assert getattr(load_settings({setting.name: shown}), setting.field) == value


@pytest.mark.parametrize(
    ("name", "text", "value"), [good for good in GOOD if good[0] not in ("REDIS_URL", "AUTH_TOKENS")]
)
def test_what_is_shown_can_be_set_again(name, text, value):
    (setting,) = (s for s in SETTINGS if s.name == f"MASKLINE_{name}")
    assert getattr(load_settings({setting.name: setting.show(value)}), setting.field) == value


def test_every_setting_is_one_row_and_its_default_passes_its_own_check():
    assert len({s.name for s in SETTINGS}) == len(SETTINGS) == len(Settings.__struct_fields__)
    for setting in SETTINGS:
        assert setting.meaning
        assert "|" not in setting.meaning + setting.kind.allowed + setting.default_text
        if shown := setting.show(setting.default):
            assert setting.kind.read(shown) == setting.default


def run_command(*argv):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert settings_command.main(list(argv)) == 0
    return output.getvalue()


def test_the_documentation_is_what_the_command_prints():
    assert (ROOT / "docs" / "settings.md").read_text() == run_command("--markdown")


def test_the_command_shows_value_and_source_and_hides_secrets(monkeypatch, tmp_path):
    for name, value in toml_environ(tmp_path, f"MASKLINE_REDIS_URL = 'redis://:{SECRET}@h:1/0'").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASKLINE_AUTH_TOKENS", f"MA1:{SECRET},SA2:{SECRET}")
    text = run_command("--json")
    rows = {row["name"]: row for row in json.loads(text)}
    assert SECRET not in text
    assert [row["name"] for row in json.loads(text)] == [s.name for s in SETTINGS]
    assert (rows["MASKLINE_REDIS_URL"]["value"], rows["MASKLINE_REDIS_URL"]["source"]) == (
        "redis://***@h:1/0",
        "file",
    )
    assert (rows["MASKLINE_AUTH_TOKENS"]["value"], rows["MASKLINE_AUTH_TOKENS"]["source"]) == (
        "MA1:***,SA2:***",
        "environment",
    )
    assert (rows["MASKLINE_PORT"]["value"], rows["MASKLINE_PORT"]["source"]) == ("8080", "default")
    table = run_command()
    assert SECRET not in table
    assert all(setting.name in table for setting in SETTINGS)
