"""Products in fp32 are fp32.

Composer's GPU device, which many of its functions make anew, allows TF32 for every product in fp32: 10 bits of
mantissa. The router's logits are in fp32 so that ties do not fall by chance; under amp they are the only such product.
With `precision: fp32` all are, and are slower for it.
"""

import warnings

import torch
from composer.devices import DeviceGPU


def forbid_tf32() -> None:
    """From here on, whatever device Composer makes; before anything is compiled, as graphs are guarded by the flag."""
    DeviceGPU.__init__.__kwdefaults__["allow_tf32"] = False  # type: ignore[index]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # Inductor advises every start to allow it
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores .* available but not enabled", UserWarning)
