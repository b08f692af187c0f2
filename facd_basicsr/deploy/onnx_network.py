"""A student in an ONNX file, run by onnxruntime as if it were a torch network."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from facd_basicsr.errors import UserError, one_line

INSTALL = "`pip install 'facd_basicsr[onnx]'`"
# Not all that onnxruntime has: TensorRT builds an engine, for minutes, for each size of image. TF32, CUDA's default,
# rounds more than what facd export takes for rounding.
PROVIDERS = {'CUDAExecutionProvider': {'use_tf32': '0'}, 'CPUExecutionProvider': {}}


class OnnxNetwork(nn.Module):
    """Runs an ONNX file on the CPU, or on a GPU where onnxruntime has CUDA.

    Input (N, C, h, w) in [0, 1], any float type; output (N, C, h * scale, w * scale), float32, not clamped.

    Args:
        path: the file.
        where: the option or argument that names it, for messages.

    Attributes:
        metadata: {name: text}, the file's own.

    Raises:
        UserError: onnxruntime is not installed, or does not read the file.
    """

    def __init__(self, path: Path, where: str) -> None:
        super().__init__()
        if importlib.util.find_spec('onnxruntime') is None:
            raise UserError(f'{where}: {path} needs onnxruntime, which is not installed; accepted: {INSTALL}')
        import onnxruntime

        available = onnxruntime.get_available_providers()
        providers = [(name, options) for name, options in PROVIDERS.items() if name in available]
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=providers)
        except Exception as error:  # onnxruntime's exceptions have no public class
            reason = one_line(error)
            raise UserError(
                f"{where}: {path} can't be read as ONNX ({reason}); accepted: a file by facd export"
            ) from error
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            found = ' and outputs '.join(', '.join(value.name for value in values) for values in (inputs, outputs))
            raise UserError(f'{where}: {path} has inputs {found}; accepted: one of each')
        (self._input,), (self._output,) = inputs, outputs
        self._dtype = torch.float16 if self._input.type == 'tensor(float16)' else torch.float32

    def forward(self, lq: Tensor) -> Tensor:
        """
        Raises:
            RuntimeError: it does not run on images of this size, as of torch's networks.
            MemoryError: it takes more than there is.
        """
        feed = {self._input.name: lq.to('cpu', self._dtype).contiguous().numpy()}
        try:
            (output,) = self._session.run([self._output.name], feed)
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no public class
            raise RuntimeError(str(error)) from error
        return torch.from_numpy(output).float()
