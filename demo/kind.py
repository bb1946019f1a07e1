"""The demonstration on a cluster of kind: images are built with Docker and loaded into its nodes.

The commands are functions of values, and a test compares them; they were not run on a real kind cluster.
"""

from demo.narrate import note
from demo.shell import REPOSITORY, Shell

TAG = "demo"
DOCKERFILES = {
    "operator": "operator/Dockerfile",
    "trainer": "trainer_image/Dockerfile",
    "inference": "inference_image/Dockerfile",
}
KUBECONFIG = REPOSITORY / "build" / "demo" / "kind.kubeconfig"


def image(part: str) -> str:
    """Return the name of an image, as Docker and the chart's values spell it."""
    return f"finetune-{part}:{TAG}"


def build_command(part: str) -> list[str]:
    """Return the command that builds an image.

    kind's nodes have no GPU: where the environment has TORCH_INDEX, an index with torch's CPU builds, docker passes it on.
    """
    command = ["docker", "build", "--file", DOCKERFILES[part], "--tag", image(part)]
    if part != "operator":
        command += ["--build-arg", "TORCH_INDEX"]
    return [*command, "."]


def load_command(cluster: str) -> list[str]:
    """Return the command that copies the images into the nodes of the cluster."""
    return ["kind", "load", "docker-image", *(image(part) for part in DOCKERFILES), "--name", cluster]


def write_kubeconfig(cluster: str) -> None:
    """Write the cluster's own kubeconfig: the shell's current context is neither used nor changed."""
    KUBECONFIG.parent.mkdir(parents=True, exist_ok=True)
    KUBECONFIG.write_text(Shell({}).run("kind", "get", "kubeconfig", "--name", cluster))
    KUBECONFIG.chmod(0o600)


def build_and_load(shell: Shell, cluster: str) -> None:
    """Build the three images and load them."""
    for command in (*(build_command(part) for part in DOCKERFILES), load_command(cluster)):
        note(" ".join(command))
        shell.run("env", "-C", str(REPOSITORY), *command, show=True)
