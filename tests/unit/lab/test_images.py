from lab.kubernetes.images import IMAGES, REPOSITORY, describe
from lab.kubernetes.node import repository_of
from lab.kubernetes.registry import PushedImage

_LAST_SHARED_LINE = "# --- End of the part that both Dockerfiles share"


def _shared_part(name: str) -> str:
    text = (REPOSITORY / IMAGES[name].dockerfile).read_text()
    assert _LAST_SHARED_LINE in text, f"{IMAGES[name].dockerfile} does not mark the end of its shared part"
    return text[text.index("ARG BASE_IMAGE") : text.index(_LAST_SHARED_LINE)]


def test_trainer_and_server_share_the_layer_of_torch_because_their_dockerfiles_begin_alike() -> None:
    assert _shared_part("trainer") == _shared_part("inference")


def test_an_images_own_size_is_what_its_base_does_not_hold() -> None:
    base = PushedImage("debian-python", "sha256:b", (("sha256:1", 50),))
    image = PushedImage("finetune-operator", "sha256:i", (("sha256:1", 50), ("sha256:2", 20), ("sha256:3", 1)))

    report = describe(image, base)

    assert report.ref == "localhost:5000/finetune-operator@sha256:i"
    assert (report.compressed_bytes, report.base_compressed_bytes, report.bytes_over_base) == (71, 50, 21)


def test_a_repository_is_known_by_tag_and_by_digest() -> None:
    assert repository_of("localhost:5000/finetune-trainer@sha256:abc") == "finetune-trainer"
    assert repository_of("localhost:5000/finetune-trainer:dev") == "finetune-trainer"
    assert repository_of("sha256:abc") == ""
