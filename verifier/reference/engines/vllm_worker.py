"""What runs inside vLLM's workers: a weights variant streamed into the loaded model.

vLLM mixes this class into its worker (`worker_extension_cls`) and calls it by `collective_rpc`,
on every rank. Each rank reads the whole checkpoint as it was published, rounds it where the
variant says, and hands it to the model's own loader, which takes its shard: so a variant means
the same under tensor, expert and pipeline parallelism, and groups never straddle a shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from verifier.records import REFERENCE
from verifier.reference.checkpoint import transformed
from verifier.reference.layout import read_layout
from verifier.reference.variants import find_variant

if TYPE_CHECKING:
    import torch


class VariantWorker:
    """Mixed into vLLM's worker, whose attributes it uses."""

    model_runner: Any
    device: Any

    def load_variant(self, name: str) -> bool:
        """Put a variant of the checkpoint, or the checkpoint itself, in place.

        Returns whether any tensor moved. Raises ConfigError for a tensor that cannot be rounded.
        """
        self._moved = False
        if self.device.type == "cpu":
            self._forget_expert_kernels()
        tensors = self._published() if name == REFERENCE else self._transformed(name)
        self.model_runner.reload_weights(weights_iterator=tensors)
        return self._moved

    def _forget_expert_kernels(self) -> None:
        """Have experts packed anew.

        vLLM 0.32 packs them for its CPU kernels on the first load only, and takes the plain tensors
        of a reload for packed ones.
        """
        for module in self.model_runner.get_model().modules():
            method: Any = getattr(module, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None

    def _published(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The checkpoint's tensors, read as vLLM itself reads them."""
        from vllm.model_executor.model_loader import get_model_loader

        config = self.model_runner.vllm_config
        loader: Any = get_model_loader(config.load_config)
        yield from loader.get_all_weights(config.model_config, self.model_runner.get_model())

    def _transformed(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        layout = read_layout(self.model_runner.vllm_config.model_config.hf_config)
        build = find_variant(name, layers=layout.layers).build
        if build is None:
            yield from self._published()
            return
        for streamed in transformed(self._published(), build(layout), layout, device=self.device):
            self._moved = self._moved or streamed.moved
            yield streamed.name, streamed.tensor
