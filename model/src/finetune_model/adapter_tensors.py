"""Tensors of an adapter's file, compared with the layout that peft gives the adapter (`servable`)."""

from collections.abc import Mapping
from typing import Any

from finetune_model.servable import PREFIX, AdapterLayout, NotServableError, listed


def tensor_problem(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return how the tensors of a file (shapes by name) differ from those of the layout; None if they do not."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    if missing or unexpected:
        parts = [f"lacks {listed(missing)}"] if missing else []
        parts += [f"has the unexpected {listed(unexpected)}"] if unexpected else []
        return f"{' and '.join(parts)}; the adapter was trained on another model, or its tensors were renamed"
    for name, shape in expected.items():
        if found[name] != shape:
            return (
                f"has {name} with shape {found[name]}; this base model needs {shape}, "
                "so the adapter was trained on another model"
            )
    return None


def own_tensors(tensors: Mapping[str, Any], layout: AdapterLayout, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Return an adapter's tensors without copies of the base model's (`modules` by path).

    peft saves embeddings and head beside an adapter that tunes them, and after the vocabulary was extended. A copy that differs
    was trained: without it, answers would be others. Raises NotServableError for such a copy, and for one that cannot be compared.
    """
    own = {}
    for name, tensor in tensors.items():
        path = _copied_path(name)
        if name in layout.tensors or not path or path not in modules:
            own[name] = tensor
            continue
        original = getattr(modules[path], name.rpartition(".")[2], None)
        if original is not None and original.device.type == "meta":
            raise NotServableError(
                f"it has a copy of {path}, which cannot be compared here with the base model's; save it without, or adopt it"
            )
        if not _is_equal(tensor, original):
            raise NotServableError(
                f"it has a copy of {path} that is not the base model's: the vocabulary was extended, or the module was trained "
                "without modules_to_save"
            )
    return own


def _copied_path(name: str) -> str:
    """Return the path of the module that a saved tensor would be a copy of; empty for a low-rank matrix."""
    is_copy = name.startswith(PREFIX) and ".lora_" not in name
    return name.removeprefix(PREFIX).rpartition(".")[0].removesuffix(".base_layer") if is_copy else ""


def _is_equal(copy: Any, original: Any) -> bool:
    """Return whether a copy has the values of the base model's tensor, which may have been rounded since or before."""
    if original is None or original.shape != copy.shape:
        return False
    copy = copy.to(original.device)
    return bool(copy.to(original.dtype).equal(original) or copy.equal(original.to(copy.dtype)))
