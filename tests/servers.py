"""Real servers on loopback for the tests: S3 (OpenStack Swift), HTTP (nginx, or as scripted), a Dask cluster.

The kernel ends every server with the tests, however these end (`setpriv --pdeathsig`).
"""

from __future__ import annotations

import getpass
import itertools
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SWIFT_SERVERS = ("account", "container", "object", "proxy")
# Debian's Swift lives in Debian's Python, not in the environment of the tests
SYSTEM_PYTHON = "/usr/bin/python3"
UP_WITHIN = 60.0  # seconds; Swift takes 3 on two idle cores
NOTICED_WITHIN = 120.0  # seconds

MAKE_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder, *servers = sys.argv[1:]
for server in servers:
    name, port = server.split(":")
    builder = RingBuilder(part_power=1, replicas=1, min_part_hours=0)
    disk = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "disk", "weight": 1}
    builder.add_dev(disk)
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""

# the commands swift-*-server read /etc/swift/swift.conf, which belongs to the machine
RUN_SERVER = """
import sys
from swift.common import utils
folder, name = sys.argv[1:]
utils.set_swift_dir(folder)
from swift.common.wsgi import run_wsgi
sys.exit(run_wsgi(f"{folder}/{name}.conf", f"{name}-server", verbose=True))
"""

CLUSTER_CONF = """
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
"""

SERVER_CONF = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {folder}
devices = {folder}
mount_check = false
workers = 0
fallocate_reserve = 0
[pipeline:main]
pipeline = {pipeline}
"""

STORAGE_CONF = """
[filter:healthcheck]
use = egg:swift#healthcheck
[app:{name}-server]
use = egg:swift#{name}
"""

PROXY_CONF = """
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:catch_errors]
use = egg:swift#catch_errors
# without it answers to HEAD that have no body end in a stray chunk
[filter:proxy-logging]
use = egg:swift#proxy_logging
# tempauth insists on a cache; nobody listens there, so nothing is remembered
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret} .admin
[filter:slo]
use = egg:swift#slo
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
# one replica: an object server that was away is asked again at once
error_suppression_limit = 1000000
"""


class ServerMissing(Exception):
    """What the tests need to start this server is not on this machine; the message says what."""


@dataclass
class S3Server:
    """An S3 endpoint with one user, in a folder of its own."""

    folder: Path
    ports: dict[str, int]
    key: str = "test:tester"
    secret: str = "a-secret-that-nobody-prints"
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}"

    @property
    def environment(self) -> dict[str, str]:
        """What any S3 client reads: where the server is, and who asks."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self, *names: str) -> None:
        for name in names:
            command = [SYSTEM_PYTHON, "-c", RUN_SERVER, str(self.folder), name]
            self.running[name] = spawn(command, self.folder / f"{name}.log")
        for name in names:
            wait_for_port(self.ports[name], self.running[name], self.folder / f"{name}.log")

    def stop(self, *names: str) -> None:
        for name in names:
            kill(self.running.pop(name))

    def kill_object_server(self) -> None:
        """From now on names are listed but no object can be read or written: status 503."""
        self.stop("object")

    def start_object_server(self) -> None:
        self.start("object")


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """OpenStack Swift with its S3 interface, four processes that keep their data in `folder`.

    Raises ServerMissing where its programs or the file system's user attributes are absent.
    """
    _need("setpriv", *(f"swift-{name}-server" for name in SWIFT_SERVERS))
    _need_user_attributes(folder)
    server = S3Server(folder, dict(zip(SWIFT_SERVERS, free_ports(len(SWIFT_SERVERS)), strict=True)))
    _configure(server)
    try:
        server.start(*SWIFT_SERVERS)
        yield server
    finally:
        server.stop(*list(server.running))


def _need_user_attributes(folder: Path) -> None:
    try:
        os.setxattr(folder, "user.shardtool", b"Swift keeps its metadata so")
    except OSError as error:
        raise ServerMissing(f"Swift needs user attributes on the file system of {folder}") from error


def _configure(server: S3Server) -> None:
    folder = server.folder
    (folder / "disk").mkdir()
    (folder / "swift.conf").write_text(CLUSTER_CONF)
    account, _, user = server.key.partition(":")
    for name, port in server.ports.items():
        if name == "proxy":
            pipeline = (
                "catch_errors healthcheck proxy-logging cache listing_formats s3api tempauth slo proxy-server"
            )
            parts = PROXY_CONF.format(account=account, user=user, secret=server.secret)
        else:
            pipeline, parts = f"healthcheck {name}-server", STORAGE_CONF.format(name=name)
        common = SERVER_CONF.format(port=port, user=getpass.getuser(), folder=folder, pipeline=pipeline)
        (folder / f"{name}.conf").write_text(common + parts)
    rings = [f"{name}:{port}" for name, port in server.ports.items() if name != "proxy"]
    subprocess.run([SYSTEM_PYTHON, "-c", MAKE_RINGS, str(folder), *rings], check=True)


@dataclass
class DaskCluster:
    """A scheduler and its workers, each a process of its own without a nanny that would revive it."""

    address: str
    workers: list[subprocess.Popen[bytes]]

    def kill_worker(self) -> None:
        """As the system's out-of-memory killer does it."""
        kill(self.workers.pop())


@contextmanager
def dask_cluster(folder: Path, workers: int = 2) -> Iterator[DaskCluster]:
    """A Dask scheduler with single-threaded workers that log into `folder`. Raises ServerMissing."""
    from distributed import Client

    _need("setpriv")
    (port,) = free_ports(1)
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    place = ["--host", "127.0.0.1", "--no-dashboard"]
    worker = ["worker", address, *place, "--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
    with ExitStack() as processes:

        def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
            process = spawn([*dask, *arguments], folder / f"{name}.log")
            processes.callback(kill, process)
            return process

        scheduler = start("scheduler", "scheduler", *place, "--port", str(port))
        wait_for_port(port, scheduler, folder / "scheduler.log")
        started = [start(f"worker-{number}", *worker) for number in range(workers)]
        if workers:
            with Client(address, set_as_default=False) as client:
                client.wait_for_workers(workers, timeout=UP_WITHIN)
        yield DaskCluster(address, started)


def _need(*programs: str) -> None:
    if missing := [program for program in programs if not shutil.which(program)]:
        raise ServerMissing(f"needs the programs {', '.join(missing)} (Debian: see .ci/run)")


def spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A child that ends with this process; what it says goes to `log`."""
    with log.open("ab") as out:
        # the death that matters to setpriv is the thread's: call it from the main thread
        bound = ["setpriv", "--pdeathsig", "KILL", *command]
        # a server finds our modules, and no relative path of whoever asks it
        return subprocess.Popen(
            bound, stdout=out, stderr=out, cwd=log.parent, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, all different."""
    with ExitStack() as sockets:
        bound = [sockets.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]


def wait_for(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Return when it has; the process must still be running then."""
    give_up = time.monotonic() + NOTICED_WITHIN
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a server accepts connections. Raises RuntimeError with its log when it does not."""
    give_up = time.monotonic() + UP_WITHIN
    while time.monotonic() < give_up and process.poll() is None:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"no server on port {port}:\n{log.read_text()}")


NGINX_CONF = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{}}
http {{
    log_format requests '$connection $status $uri';
    access_log {folder}/requests.log requests;
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    keepalive_requests 10000;
    limit_req_zone $server_port zone=few:1m rate=10r/s;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        {locations}
    }}
}}
"""


@dataclass(frozen=True)
class WebServer:
    """An HTTP server and what it was asked."""

    url: str
    log: Path

    def requests(self) -> list[tuple[int, int, str]]:
        """Number of the connection, status and path of each request that was answered so far."""
        lines = (line.split(" ", 2) for line in self.log.read_text().splitlines())
        return [(int(connection), int(status), path) for connection, status, path in lines]


@contextmanager
def nginx(root: Path, folder: Path, locations: str = "") -> Iterator[WebServer]:
    """nginx that serves `root` and keeps its own files in `folder`. Raises ServerMissing.

    `locations` goes into its configuration, where the zone `few` lets ten requests a second through.
    """
    _need("setpriv", "nginx")
    (port,) = free_ports(1)
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX_CONF.format(folder=folder, root=root, port=port, locations=locations))
    process = spawn(
        ["nginx", "-e", str(folder / "nginx.log"), "-c", str(configuration)], folder / "nginx.log"
    )
    try:
        wait_for_port(port, process, folder / "nginx.log")
        yield WebServer(f"http://127.0.0.1:{port}", folder / "requests.log")
    finally:
        kill(process)


Part = bytes | None  # None: nothing more comes, and the connection stays
Script = Callable[[int, str], Iterable[Part]]


@contextmanager
def scripted_server(script: Script) -> Iterator[str]:
    """The URL of a server that answers a request with the very bytes of `script(number, Range header)` and
    closes the connection; the first request is number 0."""
    numbers, ended = itertools.count(), threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            lines = [line.decode().strip() for line in iter(self.rfile.readline, b"\r\n") if line]
            wanted = next((line[len("range: ") :] for line in lines if line.lower().startswith("range:")), "")
            for part in script(next(numbers), wanted):
                if part is None:
                    ended.wait()
                else:
                    self.wfile.write(part)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            ended.set()
            server.shutdown()
