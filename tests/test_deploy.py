"""What lies in deploy/: against the schemas of Compose and Kubernetes, our own rules of safety, and our own commands.

No Docker daemon and no cluster is needed. Where kubectl is installed, overlays are rendered with its kustomize.
"""

import http.server
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from engine.cli import app
from engine.config import load_federation

PROJECT = Path(__file__).resolve().parent.parent
DEPLOY = PROJECT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("one-cluster", "hospital")
KUBERNETES_VERSIONS = ("1.31", kubernetes_validate.latest_version())
DOCKERFILES = {path.name.partition(".")[0]: path for path in sorted(DEPLOY.glob("*.Dockerfile"))}
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KUSTOMIZATIONS = {path.parent: yaml.safe_load(path.read_text()) for path in KUBERNETES.rglob("kustomization.yaml")}
MANIFESTS = [
    document
    for path in sorted(KUBERNETES.rglob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def name_of(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


def pods(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for manifest in manifests:
        if "template" in manifest.get("spec", {}):
            yield manifest["spec"]["template"]["spec"]


def render(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


# --- images


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfile(name: str) -> None:
    lines = DOCKERFILES[name].read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    said = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert [rest for word, rest in said if word == "FROM"] == ["python:3.11.15-slim-bookworm"]
    users = [rest for word, rest in said if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    assert said[-1][0] in {"CMD", "ENTRYPOINT"}
    assert any(word == "HEALTHCHECK" for word, _ in said)
    assert not any(word in {"ADD", "VOLUME"} for word, _ in said)
    named = set(re.findall(r"requirements[\w-]*\.txt", " ".join(rest for _, rest in said)))
    assert named and all((PROJECT / file).is_file() for file in named)
    assert ("requirements-engine.txt" in named) == (name == "engine")


def test_only_what_is_named_goes_into_an_image() -> None:
    lines = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert all((PROJECT / path).exists() for path in allowed)
    assert not any(path.split("/")[0] in {"data", "artifacts", ".git", "tests"} or path == "models" for path in allowed)
    for dockerfile in DOCKERFILES.values():
        for copied in re.findall(r"^COPY (.+)$", dockerfile.read_text(), flags=re.MULTILINE):
            sources = copied.split()[:-1]
            assert all(source == "." or source in allowed for source in sources), copied


def test_nothing_secret_is_kept() -> None:
    assert "/deploy/kubernetes/secrets/certificates/" in (PROJECT / ".gitignore").read_text().splitlines()
    for path in DEPLOY.rglob("*"):
        if path.is_file() and "certificates" not in path.parts:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"PRIVATE KEY|^kind: Secret$|stringData", text, flags=re.MULTILINE), path
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    generated = KUSTOMIZATIONS[KUBERNETES / "secrets"]["secretGenerator"]
    files = [file.rpartition("=")[2] for secret in generated for file in secret["files"]]
    assert all(set(secret) == {"name", "files"} for secret in generated)
    assert all(file.startswith("certificates/") and "ca.key" not in file for file in files)


@pytest.fixture
def answering() -> Iterator[int]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_healthy(answering: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    def asked(port: int, path: str) -> int:
        command = [sys.executable, DEPLOY / "healthy.py", str(port), path]
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode

    assert [asked(answering, "/healthz"), asked(answering, "/else"), asked(9, "/healthz")] == [0, 1, 1]


# --- compose


def test_compose_follows_its_schema(tmp_path: Path) -> None:
    def check(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert check(DEPLOY / "compose.yaml").returncode == 0
    wrong = tmp_path / "compose.yaml"  # and the check tells
    wrong.write_text((DEPLOY / "compose.yaml").read_text().replace("read_only:", "readonly:"))
    assert "readonly" in check(wrong).stdout


@pytest.mark.parametrize("name", SERVICES)
def test_compose_service_is_locked(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "CONSILIUM_USER" in service["user"]
    assert service["mem_limit"] and service["cpus"] and service["pids_limit"]
    assert service["healthcheck"]["test"][:3] == ["CMD", "python", "deploy/healthy.py"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert not {"privileged", "network_mode", "env_file"} & set(service)


def test_compose_hospitals_reach_the_coordinator_alone() -> None:
    assert COMPOSE["networks"]["federation"] == {"internal": True}
    hospitals = {name: service for name, service in SERVICES.items() if name.startswith("hospital-")}
    assert len(hospitals) == 2
    for name, service in hospitals.items():
        assert service["networks"] == ["federation"] and "ports" not in service
        data, *rest = service["volumes"]
        assert (data["target"], data["read_only"]) == ("/data", True)
        assert all(volume.startswith(f"{name}-") for volume in rest), "another's state"
        assert service["secrets"] == ["ca", f"{name}-key"], "another's key"
        assert f"--id={name}" in service["command"]
    assert SERVICES["dashboard"]["volumes"] == ["artifacts:/artifacts:ro"]
    assert SERVICES["coordinator"]["restart"] == "no"


def test_compose_names_what_there_is() -> None:
    used: dict[str, set[str]] = {"secrets": set(), "configs": set(), "volumes": set(), "networks": set()}
    for service in SERVICES.values():
        for kind in ("secrets", "configs"):
            for entry in service.get(kind, ()):
                used[kind].add(entry if isinstance(entry, str) else entry["source"])
        used["volumes"] |= {volume.split(":")[0] for volume in service.get("volumes", ()) if isinstance(volume, str)}
        used["networks"] |= set(service["networks"])
    for kind, names in used.items():
        assert set(COMPOSE[kind]) == names, kind
    assert all((DEPLOY / config["file"]).is_file() for config in COMPOSE["configs"].values())
    for service in SERVICES.values():
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_the_federation_and_the_policy_are_readable() -> None:
    federation = load_federation(KUBERNETES / "base" / "coordinator" / "federation.toml")
    assert [hospital.id for hospital in federation.hospital] == ["hospital-a", "hospital-b"]
    assert federation.simulated
    path = KUBERNETES / "base" / "hospital" / "policy.toml"
    assert tomllib.loads(path.read_text())["federations"] == [federation.name]
    policy = pytest.importorskip("engine.federation.policy", reason="the hospital's policy is not in this version")
    assert policy.read_policy(path).refusal(federation, policy.datetime.time(12)) is None


# --- kubernetes


def test_kustomizations_list_what_there_is() -> None:
    reached = {KUBERNETES / "overlays" / name for name in OVERLAYS} | {KUBERNETES / "secrets"}
    for folder, kustomization in KUSTOMIZATIONS.items():
        listed = {(folder / resource).resolve() for resource in kustomization["resources"]}
        assert all(path.is_file() or path in KUSTOMIZATIONS for path in listed), folder
        assert {path for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"} <= listed, folder
        reached |= listed
        for generator in kustomization.get("configMapGenerator", ()):
            assert all((folder / file).is_file() for file in generator["files"])
    assert set(KUSTOMIZATIONS) <= reached


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_manifest_follows_its_schema(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def check_pod(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] >= 10000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(set(volume) & {"configMap", "secret", "persistentVolumeClaim", "emptyDir"} for volume in pod["volumes"])
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume)
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True and context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) == set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            if "secret" in volume or "configMap" in volume or volume["name"] == "data":
                assert mounts[volume["name"]]["readOnly"] is True


def test_pods_are_locked() -> None:
    found = list(pods(MANIFESTS))
    assert len(found) == 3  # coordinator, dashboard, and the hospital that overlays make two of
    for pod in found:
        check_pod(pod)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_renders(overlay: str) -> None:
    manifests = render(KUBERNETES / "overlays" / overlay)
    names = {name_of(manifest) for manifest in manifests}
    hospitals = {"one-cluster": ["hospital-a", "hospital-b"], "hospital": ["hospital"]}[overlay]
    assert {f"Deployment-{hospital}" for hospital in hospitals} <= names
    secrets = {generator["name"] for generator in KUSTOMIZATIONS[KUBERNETES / "secrets"]["secretGenerator"]}
    held: list[str] = []
    for manifest in manifests:
        kubernetes_validate.validate(manifest, KUBERNETES_VERSIONS[-1], strict=True)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "consilium"
    for pod in pods(manifests):
        check_pod(pod)
        for volume in pod["volumes"]:
            if "secret" in volume:
                held.append(volume["secret"]["secretName"])
            if "configMap" in volume:
                assert f"ConfigMap-{volume['configMap']['name']}" in names
            if "persistentVolumeClaim" in volume:
                assert f"PersistentVolumeClaim-{volume['persistentVolumeClaim']['claimName']}" in names
    assert set(held) <= secrets and len(held) == len(set(held)), "a secret is missing, or one is shared"


@needs_kubectl
def test_services_and_policies_select_pods() -> None:
    manifests = render(KUBERNETES / "overlays" / "one-cluster")
    labels = [m["spec"]["template"]["metadata"]["labels"] for m in manifests if "template" in m.get("spec", {})]

    def selected(wanted: dict[str, str]) -> int:
        return sum(wanted.items() <= label.items() for label in labels)

    for manifest in manifests:
        if manifest["kind"] == "Service":
            assert selected(manifest["spec"]["selector"]) == 1
            assert manifest["spec"].get("type", "ClusterIP") == "ClusterIP"
        if manifest["kind"] == "Deployment":
            assert selected(manifest["spec"]["selector"]["matchLabels"]) == 1
    policies = {m["metadata"]["name"]: m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"}
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert selected(policies["hospital"]["podSelector"]["matchLabels"]) == 2
    assert "ingress" not in policies["hospital"] and "egress" not in policies["coordinator"]
    to_coordinator, names = policies["hospital"]["egress"]
    assert selected(to_coordinator["to"][0]["podSelector"]["matchLabels"]) == 1 and len(to_coordinator["to"]) == 1
    assert {port["port"] for port in names["ports"]} == {53}
    (from_hospitals,) = policies["coordinator"]["ingress"]
    assert selected(from_hospitals["from"][0]["podSelector"]["matchLabels"]) == 2


@needs_kubectl
def test_secrets_have_the_files_that_pods_read(tmp_path: Path) -> None:
    """From what `certificates` makes, where this version has it; from files of the same names elsewhere."""
    copy = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copy, ignore=shutil.ignore_patterns("certificates"))
    made = copy / "secrets" / "certificates"
    if "certificates" in COMMANDS:
        hospitals = ["--hospital", "hospital-a", "--hospital", "hospital-b"]
        command = [sys.executable, "-m", "engine", "certificates", str(made), "--host", "coordinator", *hospitals]
        subprocess.run(command, cwd=PROJECT, check=True)
    else:
        both = [f"hospital-{one}/{file}" for one in "ab" for file in ("ca.crt", "node.key", "node.pub")]
        for file in ("ca.crt", "ca.key", "server.pem", "server.key", *both):
            (made / file).parent.mkdir(parents=True, exist_ok=True)
            (made / file).write_text(f"stands for {file}")
    secrets = {m["metadata"]["name"]: set(m["data"]) for m in render(copy / "secrets") if m["kind"] == "Secret"}
    for pod in pods(render(copy / "overlays" / "one-cluster")):
        for volume in pod["volumes"]:
            if "secret" in volume:
                asked = volume["secret"].get("items", [{"key": "ca.crt"}, {"key": "node.key"}])
                assert {item["key"] for item in asked} == secrets.pop(volume["secret"]["secretName"])
    assert not secrets


# --- our own commands


def commands_used() -> Iterator[tuple[str, list[str]]]:
    """Where it stands, and the words after `python -m engine`."""
    for name, service in SERVICES.items():
        if "command" in service:
            yield f"compose {name}", service["command"]
    for pod in pods(MANIFESTS):
        for container in pod["containers"]:
            if "args" in container:
                yield f"kubernetes {container['name']}", container["args"]
    text = (PROJECT / "docs" / "deploy.md").read_text(encoding="utf-8").replace("\\\n", " ")
    for words in re.findall(r"(?:python -m engine|consilium-engine:local) +([a-z][^\n`#]*)", text):
        yield "docs/deploy.md", shlex.split(words)


@pytest.mark.parametrize(("where", "words"), list(commands_used()), ids=lambda value: str(value)[:40])
def test_flags_are_our_commands_own(where: str, words: list[str]) -> None:
    command = COMMANDS.get(words[0])
    if command is None and words[0] in {"certificates", "coordinator", "hospital"}:
        pytest.skip(f"'{words[0]}' is not a command of this version yet")
    assert command is not None, f"{where}: {words[0]}"
    parameters = list(command.params)
    if words[1:] and words[1] in getattr(command, "commands", {}):
        parameters = list(command.commands[words[1]].params)
    known = {option for parameter in parameters for option in parameter.opts + parameter.secondary_opts}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= known, f"{where}: {given - known}"
    needed = [parameter.opts for parameter in parameters if parameter.required and parameter.opts[0].startswith("-")]
    assert all(given & set(options) for options in needed), f"{where}: {needed}"


# --- gke.sh


STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$(basename "$0") $*" in
    "kubectl kustomize "*) cat "$2/kustomization.yaml" "$RENDERED" ;;
    *"get secret "*) exit "${NO_SECRET:-0}" ;;
    *"get job "*) printf '%s' "${JOB_IMAGE:-}" ;;
    "docker push"*) exit "${NO_PUSH:-0}" ;;
esac
"""
RENDERED = """
kind: Job
        image: europe-docker.pkg.dev/p/r/consilium-engine:1.0
        image: europe-docker.pkg.dev/p/r/consilium-dashboard:1.0
          secretName: hospital-a
          secretName: coordinator
"""
INPUTS = {"IMAGE": "europe-docker.pkg.dev/p/r/consilium:1.0", "CLUSTER": "c", "LOCATION": "europe-north1"}
TOOLS = ("docker", "gcloud", "kubectl")


class Gke:
    """gke.sh among tools that only write down what they are asked; the shell's own tools are real."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.calls_file, self.temporary = folder / "bin", folder / "calls", folder / "tmp"
        self.rendered = folder / "rendered"
        self.rendered.write_text(RENDERED)
        self.calls_file.touch()
        self.bin.mkdir()
        self.temporary.mkdir()
        for tool in ("bash", "sh", "cp", "rm", "cat", "sed", "sort", "grep", "mktemp", "dirname", "basename"):
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool}"))
        for tool in TOOLS:
            (self.bin / tool).write_text(STUB)
            (self.bin / tool).chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> tuple[int, list[str], str]:
        given = {"PATH": str(self.bin), "TMPDIR": str(self.temporary), **INPUTS, **environment}
        given |= {"CALLS": str(self.calls_file), "RENDERED": str(self.rendered)}
        command = [str(DEPLOY / "gke.sh"), *arguments]
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        assert not list(self.temporary.iterdir()), "it leaves nothing behind"
        return done.returncode, self.calls_file.read_text().splitlines(), done.stderr


@pytest.fixture
def gke(tmp_path: Path) -> Gke:
    return Gke(tmp_path)


def test_gke_builds_pushes_and_applies(gke: Gke) -> None:
    code, calls, errors = gke.run()
    assert (code, errors) == (0, "")
    what = [" ".join(call.split()[:2]) for call in calls]
    asked = ["kubectl kustomize", "gcloud container", *["kubectl --context"] * 3]
    assert what == [*asked, *["docker build"] * 2, "gcloud auth", *["docker push"] * 2, *["kubectl --context"] * 2]
    named = [call.split()[-2] for call in calls if call.startswith("docker build")]
    pushed = [call.split()[-1] for call in calls if call.startswith("docker push")]
    assert named == pushed == [f"europe-docker.pkg.dev/p/r/consilium-{part}:1.0" for part in ("engine", "dashboard")]
    on_cluster = [call for call in calls if call.startswith("kubectl --context")]
    assert all("--context gke_p_europe-north1_c --namespace consilium " in call for call in on_cluster)
    assert " apply " in on_cluster[-2] and " wait " in on_cluster[-1]


def test_gke_dry_run_changes_nothing(gke: Gke) -> None:
    code, calls, errors = gke.run("--dry-run")
    assert code == 0 and [call.split()[1] for call in calls] == ["kustomize"]
    assert [line.split()[1] for line in errors.splitlines()].count("docker") == 4
    assert all(line.startswith("+ ") for line in errors.splitlines())


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"IMAGE": ""}, "IMAGE=''"),
        ({"IMAGE": "consilium:1.0"}, "set it like"),
        ({"IMAGE": "europe-docker.pkg.dev/p/r/consilium"}, "set it like"),
        ({"IMAGE": "europe-docker.pkg.dev/p/r/consilium:1.0; rm -rf ."}, "set it like"),
        ({"IMAGE": "europe-docker.pkg.dev/p/r/consilium:latest"}, "names no version"),
        ({"CLUSTER": ""}, "CLUSTER is not set"),
        ({"LOCATION": ""}, "LOCATION is not set"),
        ({"OVERLAY": "elsewhere"}, "no such folder"),
    ],
)
def test_gke_refuses(gke: Gke, environment: dict[str, str], complaint: str) -> None:
    code, calls, errors = gke.run(**environment)
    assert (code, calls) == (2, []) and complaint in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize("tool", TOOLS)
def test_gke_names_the_tool_that_is_missing(gke: Gke, tool: str) -> None:
    (gke.bin / tool).unlink()
    code, calls, errors = gke.run()
    assert (code, calls) == (2, []) and errors.startswith(f"gke.sh: {tool} is not installed")


def test_gke_refuses_an_unknown_option(gke: Gke) -> None:
    code, calls, errors = gke.run("--force")
    assert (code, calls) == (2, []) and "--force" in errors


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"NO_SECRET": "1"}, "secret coordinator cannot be read"),
        ({"JOB_IMAGE": "europe-docker.pkg.dev/p/r/consilium-engine:0.9"}, "a job cannot change"),
    ],
)
def test_gke_asks_the_cluster_before_it_builds(gke: Gke, environment: dict[str, str], complaint: str) -> None:
    code, calls, errors = gke.run(**environment)
    assert code == 2 and complaint in errors
    assert not any(call.startswith("docker") or " apply " in call for call in calls)


def test_gke_applies_nothing_that_was_not_pushed(gke: Gke) -> None:
    code, calls, _ = gke.run(NO_PUSH="7")
    assert code == 7 and calls[-1].startswith("docker push")


@needs_kubectl
def test_gke_puts_the_image_everywhere(gke: Gke) -> None:
    (gke.bin / "kubectl").unlink()
    environment = os.environ | {"PATH": f"{gke.bin}:{os.environ['PATH']}", "CALLS": str(gke.calls_file), **INPUTS}
    done = subprocess.run(
        [str(DEPLOY / "gke.sh"), "--dry-run"], env=environment, capture_output=True, text=True, check=True
    )
    images = sorted(c["image"] for pod in pods(list(yaml.safe_load_all(done.stdout))) for c in pod["containers"])
    repository = "europe-docker.pkg.dev/p/r/consilium"
    assert images == [f"{repository}-dashboard:1.0", *[f"{repository}-engine:1.0"] * 3]
