"""What is said of servers that are set up so that a promise could not be kept."""

import pytest
from servers import RedisServer, binary_of, plain_reply, server_kinds, wait_until

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.server_checks import MEMORY_HIGH, Finding, find_faults, inspect_server, parse_info
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.settings import Settings

GOOD = {
    "redis_version": "8.2.3", "maxmemory": "0", "maxmemory_policy": "noeviction", "used_memory": "1000000",
    "aof_enabled": "1", "aof_last_write_status": "ok", "rdb_last_bgsave_status": "ok", "role": "master",
}  # fmt: skip
LIMITED = {"maxmemory": "2000000"}
NO_AOF = {"aof_enabled": "0"}


def codes(findings: list[Finding]) -> list[str]:
    return [f"{finding.severity} {finding.code}" for finding in findings]


@pytest.mark.parametrize(
    ("said", "save", "expected"),
    [
        ({}, "", []),
        ({}, "3600 1", []),
        ({}, None, []),  # with an append-only file, save points do not matter
        # Versions
        ({"redis_version": "7.0.0"}, "", []),
        ({"redis_version": "10.0.1"}, "", []),
        ({"redis_version": "6.2.14"}, "", ["error server_too_old"]),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.5"}, "", []),
        ({"redis_version": "6.9.9", "valkey_version": "12.0.0"}, "", []),
        ({"redis_version": "unstable"}, "", ["warning not_inspected"]),
        # Eviction
        ({"maxmemory_policy": "allkeys-lru"}, "", ["warning eviction_policy"]),
        ({"maxmemory_policy": "volatile-ttl"}, "", ["warning eviction_policy"]),
        (LIMITED, "", []),
        (LIMITED | {"maxmemory_policy": "allkeys-lru"}, "", ["error callbacks_evicted"]),
        (LIMITED | {"maxmemory_policy": "allkeys-random"}, "", ["error callbacks_evicted"]),
        (LIMITED | {"maxmemory_policy": "something-new"}, "", ["error callbacks_evicted"]),
        (LIMITED | {"maxmemory_policy": "volatile-lfu"}, "", ["warning states_evicted"]),
        ({"maxmemory": "1000001"}, "", ["warning memory_nearly_full"]),
        ({"maxmemory": str(int(1_000_000 / MEMORY_HIGH) + 1)}, "", []),
        # Persistence
        (NO_AOF, "", ["warning no_persistence"]),
        (NO_AOF, "3600 1 300 100", ["warning snapshots_only"]),
        (NO_AOF, None, ["warning appendonly_off", "warning not_inspected"]),
        ({"aof_last_write_status": "err"}, "", ["warning append_failing"]),
        (NO_AOF | {"aof_last_write_status": "err"}, "60 1", ["warning snapshots_only"]),
        ({"rdb_last_bgsave_status": "err"}, "60 1", ["warning snapshot_failing"]),
        # The role
        ({"role": "slave"}, "", ["warning replica"]),
        # Several at once
        (
            NO_AOF | LIMITED | {"redis_version": "5.0.7", "maxmemory_policy": "allkeys-lfu", "role": "slave"},
            "",
            ["error server_too_old", "error callbacks_evicted", "warning no_persistence", "warning replica"],
        ),
    ],
)
def test_faults_found_by_what_a_server_says(said, save, expected):
    findings = find_faults(GOOD | said, save)
    assert codes(findings) == expected
    for finding in findings:
        assert finding.text.isprintable(), "one line"


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("redis_version", "version"),
        ("maxmemory_policy", "eviction policy"),
        ("maxmemory", "eviction policy"),
        ("aof_enabled", "persistence"),
        ("role", "role"),
    ],
)
def test_missing_facts_are_named_and_not_guessed(missing, named):
    said = {name: value for name, value in GOOD.items() if name != missing}
    (finding,) = find_faults(said, "")
    assert (finding.severity, finding.code) == ("warning", "not_inspected")
    assert f"does not tell its {named}:" in finding.text


def test_server_that_tells_nothing():
    (finding,) = find_faults({}, None)
    assert finding.code == "not_inspected"
    for named in ("version", "eviction policy", "persistence", "role"):
        assert named in finding.text


def test_text_of_info_is_read_whatever_its_line_ends_and_oddities():
    text = "# Server\r\nredis_version:8.2.3\r\n\r\nconfig_file:/a:b\nno colon\r\nmaxmemory:\r\n"
    assert parse_info(text.encode()) == {"redis_version": "8.2.3", "config_file": "/a:b", "maxmemory": ""}
    assert codes(find_faults(GOOD | {"maxmemory": "", "used_memory": "-1"}, "")) == ["warning not_inspected"]


# Real servers


@pytest.fixture(params=server_kinds())
def server(request, tmp_path):
    server = RedisServer(tmp_path, binary=binary_of(request.param)).start()
    yield server
    server.stop()


async def inspect(url):
    connection = await RedisEndpoint(Settings(redis_url=url)).connect("test")
    try:
        return await inspect_server(connection)
    finally:
        connection.close()


async def test_findings_of_a_server_follow_its_configuration(server):
    report = await inspect(server.url)
    said = parse_info(plain_reply(server.port, "INFO", "server"))
    assert report.version in (f"Valkey {said.get('valkey_version')}", f"Redis {said['redis_version']}")
    assert report.version.startswith("Valkey") == ("valkey_version" in said)
    assert report.findings == ()
    memory = {"used_bytes": report.memory_used_bytes, "max_bytes": 0}
    assert report.details() == {"version": report.version, "memory": memory, "errors": [], "warnings": []}
    assert report.memory_used_bytes > 100_000

    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert codes((await inspect(server.url)).findings) == ["warning eviction_policy"]
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 50_000)
        client.config_set("appendonly", "no")
        report = await inspect(server.url)
        assert codes(report.errors) == ["error callbacks_evicted"]
        assert codes(report.warnings) == ["warning memory_nearly_full", "warning no_persistence"]
        details = report.details()
        assert [one["code"] for one in details["errors"]] == ["callbacks_evicted"]
        assert "CONFIG SET maxmemory-policy noeviction" in details["errors"][0]["text"]
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("save", "3600 1")
        assert codes((await inspect(server.url)).findings) == ["warning snapshots_only"]


async def test_snapshot_that_fails_and_a_replica(server, tmp_path):
    with server.client() as client:
        client.config_set("save", "3600 1")
        (tmp_path / "dump.rdb").mkdir()  # nothing can be renamed over it
        client.bgsave()
        wait_until(
            lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", what="the snapshot to fail"
        )
        assert codes((await inspect(server.url)).findings) == ["warning snapshot_failing"]
        client.replicaof("127.0.0.1", server.port)
        assert "warning replica" in codes((await inspect(server.url)).findings)


@pytest.mark.parametrize(
    ("rights", "not_told"),
    [
        ("-info", "version, eviction policy, persistence, role"),
        ("-config", ""),
        ("-info -config", "version, eviction policy, persistence, role"),
    ],
)
async def test_user_without_rights_gets_a_warning(server, rights, not_told):
    plain_reply(server.port, "ACL", "SETUSER", "ann", "on", ">pass", "~*", "+@all", *rights.split())
    report = await inspect(f"redis://ann:pass@127.0.0.1:{server.port}/0")
    assert codes(report.findings) == (["warning not_inspected"] if not_told else [])
    assert not not_told or (report.version == "unknown" and f"its {not_told}:" in report.findings[0].text)
    assert not report.errors


async def test_without_config_the_save_points_are_not_guessed(server):
    plain_reply(server.port, "CONFIG", "SET", "appendonly", "no")
    plain_reply(server.port, "ACL", "SETUSER", "ann", "on", ">pass", "~*", "+@all", "-config")
    report = await inspect(f"redis://ann:pass@127.0.0.1:{server.port}/0")
    assert codes(report.findings) == ["warning appendonly_off", "warning not_inspected"]


async def test_inspection_over_a_lost_connection_raises(server):
    connection = await RedisEndpoint(Settings(redis_url=server.url)).connect("test")
    server.kill()
    with pytest.raises(RedisUnavailableError):
        await inspect_server(connection)
