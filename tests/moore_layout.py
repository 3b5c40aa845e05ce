"""The files of the public Animate Anyone reproduction, with random weights."""

import dataclasses
from pathlib import Path

import safetensors.torch
import torch
from torch_animate_anyone import TorchAnimateAnyone

from animate_jax.config import ModelConfig

FILES = {
    "denoising_unet": "denoising_unet.pth",
    "reference_unet": "reference_unet.pth",
    "motion_module": "motion_module.pth",
    "pose_guider": "pose_guider.pth",
    "autoencoder": "sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
}


@dataclasses.dataclass(frozen=True)
class MooreLayout:
    """A folder of files and what was put into them, {component: {key: tensor}}."""

    folder: Path
    config: ModelConfig
    state_dicts: dict[str, dict[str, torch.Tensor]]

    def linked(self, folder: Path, without: tuple[str, ...] = ()) -> Path:
        """The same files under another folder, some left out; writing a new one is safe."""
        for file in self.folder.rglob("*"):
            name = str(file.relative_to(self.folder))
            if file.is_file() and not name.startswith(without):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(file)
        return folder


def write_moore_layout(
    folder: Path, config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0
) -> MooreLayout:
    """Write every file, with the position tables random too, so that each tensor is its own."""
    model = TorchAnimateAnyone(config, seed)
    generator = torch.Generator().manual_seed(seed)
    for table in model.motion.buffers():
        table.normal_(generator=generator)
    for module in (
        model.denoising_unet,
        model.reference_unet,
        model.motion,
        model.pose_guider,
        model.autoencoder,
        model.image_encoder,
    ):
        module.to(dtype)
    state_dicts = model.state_dicts()
    folder.mkdir(parents=True, exist_ok=True)
    for component, name in FILES.items():
        if name.endswith(".pth"):
            torch.save(state_dicts[component], folder / name)
    model.autoencoder.save_pretrained(folder / "sd-vae-ft-mse")
    model.image_encoder.save_pretrained(folder / "image_encoder")
    model.denoising_unet.save_config(folder / "stable-diffusion-v1-5" / "unet")
    return MooreLayout(folder, config, state_dicts)


def read_moore_file(folder: Path, component: str) -> dict[str, torch.Tensor]:
    """The tensors of one file, as PyTorch's own readers give them."""
    file = folder / FILES[component]
    if file.suffix == ".pth":
        return torch.load(file, weights_only=True)
    return safetensors.torch.load_file(file)
