"""Calls that surely block the thread they are made in, by their full names, and what to call instead. Pure.

A name is the one that the documentation uses, or the one that the function itself bears: `requests.get` is
`requests.api.get`. Opening a file is not in it: a local disk answers soon enough, as a
rule.
"""

from typing import Final

_IN_A_THREAD: Final = "await asyncio.to_thread(…), or make the handler a plain def"
_HTTP: Final = "use aiohttp, or make the handler a plain def"
_PROCESS: Final = "await asyncio.create_subprocess_exec(…), or make the handler a plain def"
_REDIS: Final = "use redis.asyncio, or make the handler a plain def"
_DATABASE: Final = "use an asyncio driver, or make the handler a plain def"

FUNCTIONS: Final[dict[str, str]] = {
    "time.sleep": "await asyncio.sleep(…)",
    **{
        f"{module}.{name}": _HTTP
        for module in ("requests", "requests.api", "httpx", "httpx._api")
        for name in ("get", "post", "put", "patch", "delete", "head", "options", "request", "stream")
    },
    "urllib.request.urlopen": _HTTP,
    "urllib.request.urlretrieve": _HTTP,
    **{
        f"subprocess.{name}": _PROCESS
        for name in ("run", "call", "check_call", "check_output", "getoutput", "getstatusoutput")
    },
    **{f"os.{name}": _PROCESS for name in ("system", "wait", "waitpid")},
    **{f"subprocess.Popen.{name}": _PROCESS for name in ("wait", "communicate")},
    "threading.Event.wait": "use asyncio.Event",
    "threading.Thread.join": _IN_A_THREAD,
    "socket.create_connection": "await asyncio.open_connection(…)",
    **{
        f"socket.{name}": "await asyncio.get_running_loop().getaddrinfo(…)"
        for name in ("getaddrinfo", "gethostbyname", "gethostbyaddr", "getnameinfo")
    },
    "select.select": _IN_A_THREAD,
    "builtins.input": _IN_A_THREAD,
    **{
        f"{module}.connect": _DATABASE
        for module in ("sqlite3", "sqlite3.dbapi2", "psycopg2", "pymysql", "MySQLdb")
    },
    **{f"boto3.{name}": _IN_A_THREAD for name in ("client", "resource")},
    "psycopg.connect": _DATABASE,
    "psycopg.connection.Connection.connect": _DATABASE,
    "redis.from_url": _REDIS,
    "redis.utils.from_url": _REDIS,
    "asyncio.run": "await the coroutine: an event loop runs already",
    "asyncio.runners.run": "await the coroutine: an event loop runs already",
}
"""Functions, and what to do instead."""

CLIENTS: Final[dict[str, str]] = {
    "requests.Session": _HTTP,
    "requests.sessions.Session": _HTTP,
    "httpx.Client": _HTTP,
    "httpx._client.Client": _HTTP,
    "http.client.HTTPConnection": _HTTP,
    "urllib3.poolmanager.PoolManager": _HTTP,
    "urllib3.PoolManager": _HTTP,
    "redis.Redis": _REDIS,
    "redis.client.Redis": _REDIS,
    "valkey.Valkey": _REDIS,
    "valkey.client.Valkey": _REDIS,
    "sqlite3.Connection": _DATABASE,
    "psycopg.Connection": _DATABASE,
    "psycopg.connection.Connection": _DATABASE,
    "psycopg2.extensions.connection": _DATABASE,
    "smtplib.SMTP": _IN_A_THREAD,
    "plivo.RestClient": _IN_A_THREAD,
    "plivo.rest.client.RestClient": _IN_A_THREAD,
    "pymongo.MongoClient": _DATABASE,
    "botocore.client.BaseClient": _IN_A_THREAD,
    "boto3.resources.base.ServiceResource": _IN_A_THREAD,
    **{
        f"sqlalchemy.{name}": _DATABASE
        for name in ("engine.base.Engine", "engine.base.Connection", "orm.session.Session")
    },
}
"""Classes whose methods block, and what to do instead. Making one in an async handler counts as well."""

HARMLESS_METHODS: Final = frozenset(
    {
        "register_script", "mount", "set_trace_callback", "create_function", "set_debuglevel", "pipeline", "add",
        "add_all",
    }
)  # fmt: skip
"""Methods of those classes that wait for nothing."""
