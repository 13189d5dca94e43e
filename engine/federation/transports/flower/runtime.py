"""The few inner parts of Flower 1.41 that this project needs, in one place: the release is pinned for them.

SuperLink and SuperNode run with `--isolation process`: they hand tasks out, and this program, as it is installed, does
them. Flower's own executor would unpack the code that came with a run and start that.
"""

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx
from flwr.app import Context, Message
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.common.serde import context_from_proto, context_to_proto, fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.proto.node_pb2 import Node, NodeInfo
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.serverapp import Grid
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from engine.errors import RunError
from engine.federation.training_log import log
from engine.federation.transports.flower.node import Answer

START_SECONDS = 90.0  # for a SuperLink to be up, and to hand its run out
HEARTBEAT_S = 20.0  # a task that is not heard of for a minute is taken to be dead
ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
# All that travels as "the app": names of functions of the installed program, and no file.
BUNDLE = b"""[project]
name = "consilium"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "consilium"
[tool.flwr.app.components]
serverapp = "engine.federation.transports.flower.apps:server"
clientapp = "engine.federation.transports.flower.apps:client"
"""


@dataclass(frozen=True)
class Endpoint:
    """A SuperLink or SuperNode on this machine: its address, its CA certificate where it speaks TLS, and the secret
    without which it hands out no task."""

    address: str
    secret: bytes
    ca: bytes | None = None

    def runtime(self, token: str | None = None) -> RuntimeHttpClient:
        proof = (
            SuperExecAuthHttpInterceptor(master_secret=self.secret, protected_methods=ACQUIRE)
            if token is None
            else RuntimeTokenHttpInterceptor(token)
        )
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.ca is None,
            root_certificates=self.ca,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="consilium"), proof],
        )

    def control(self) -> ControlHttpClient:
        return ControlHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.ca is None,
            root_certificates=self.ca,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )


def acquire(endpoint: Endpoint, kind: TaskType) -> str | None:
    """A waiting task's token; None where there is none, or where nobody listens yet."""
    client = endpoint.runtime()
    try:
        taken = client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
    except httpx.HTTPError:
        return None
    finally:
        client.close()
    return taken.token or None


@contextlib.contextmanager
def alive(client: RuntimeHttpClient) -> Iterator[None]:
    """Heartbeats of one task, from a thread: an answer may take hours."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            with contextlib.suppress(httpx.HTTPError):
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    thread = threading.Thread(target=beat, daemon=True)
    client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def answer_one(endpoint: Endpoint, answer: Answer) -> bool:
    """Take one message that the SuperNode has received, and answer it; False where there is none.

    The bundle that came with it is neither unpacked nor looked into: what answers is what is installed here.
    Raises httpx.HTTPError and RuntimeError where the SuperNode no longer listens.
    """
    token = acquire(endpoint, TaskType.CLIENT_APP)
    if token is None:
        return False
    client = endpoint.runtime(token)
    try:
        with alive(client):
            context, _ = _begin(client)
            message = _pull_message(client, Node(node_id=context.node_id), context.run_id)
            if message is not None:
                push_message(client, answer(message), context)
                push_task_output(client=client, context=context, sub_status="completed", details="")
    finally:
        client.close()
    return True


def _begin(client: RuntimeHttpClient) -> tuple[Context, Run]:
    """Take the task's input. Flower's messages carry the identity of the task that this process is in."""
    given = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
    TaskIdentity.node_id = given.context.node_id
    return context_from_proto(given.context), run_from_proto(given.run)


def _pull_message(client: RuntimeHttpClient, node: Node, run_id: int) -> Message | None:
    """None where the SuperNode has given the task up: its coordinator went away while the message was on its way.
    Flower's own executor waits two hours for the rest of it."""
    given = client.PullMessages(PullAppMessagesRequest())
    pull = make_pull_object_fn_protobuf(client.PullObject, node, run_id)

    def pull_while_wanted(object_id: str) -> bytes:
        try:
            return pull(object_id)
        except ObjectUnavailableError:
            if not client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                raise ObjectPullError(object_id, "its task was given up") from None
            raise

    confirm = make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run_id)
    try:
        tree = given.message_object_trees[0]
        message = pull_and_inflate_object_from_tree(tree, pull_while_wanted, confirm, return_type=Message)
    except httpx.HTTPError:
        raise
    except Exception as error:  # its bytes are a coordinator's choice
        log.warning("a question was lost on its way: %s", error)
        return None
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def register(endpoint: Endpoint, keys: Mapping[str, bytes]) -> dict[str, int]:
    """The node of every hospital's public key; a key that is known keeps its node."""
    client = endpoint.control()
    try:
        known = {node.public_key: node.node_id for node in client.ListNodes(ListNodesRequest()).nodes_info}
        return {
            hospital: known[key] if key in known else client.RegisterNode(RegisterNodeRequest(public_key=key)).node_id
            for hospital, key in keys.items()
        }
    finally:
        client.close()


def last_heard(node: NodeInfo) -> float:
    """When this node's last heartbeat came, in seconds since 1970."""
    return node.online_until - HEARTBEAT_PATIENCE * node.heartbeat_interval


@contextlib.contextmanager
def opened_grid(endpoint: Endpoint) -> Iterator[Grid]:
    """A run of its own at the SuperLink, done by this process; earlier runs that nobody does any more are stopped."""
    fab, _ = build_fab_from_files({"pyproject.toml": BUNDLE})
    control = endpoint.control()
    try:
        for run_id, run in control.ListRuns(ListRunsRequest()).run_dict.items():
            if run.status.status != "finished":
                control.StopRun(StopRunRequest(run_id=run_id))
        control.StartRun(StartRunRequest(fab=fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {}))))
    finally:
        control.close()
    token, until = None, time.monotonic() + START_SECONDS
    while token is None:
        if time.monotonic() > until:
            raise RunError(f"the SuperLink at {endpoint.address} gives its run to nobody; its log says why")
        time.sleep(0.1)
        token = acquire(endpoint, TaskType.SERVER_APP)
    grid = HttpGrid(endpoint.address, endpoint.ca is None, endpoint.ca, token=token)
    client = endpoint.runtime(token)
    status, details = "failed", "stopped"
    try:
        with alive(client):
            context, run = _begin(client)
            grid.set_run(run)
            try:
                yield grid
                status, details = "completed", ""
            finally:
                output = PushTaskOutputRequest(context=context_to_proto(context), sub_status=status, details=details)
                with contextlib.suppress(httpx.HTTPError):
                    client.PushTaskOutput(output)
    finally:
        grid.close()
        client.close()
