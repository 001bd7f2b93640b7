"""Stock LitServe at its best settings that were found: raw bytes by a public hook, batches, an optimised model.

More workers or API servers, two threads and longer waits for a batch were slower on two cores.

python -m benchmarks.peers.litserve_best MODEL PORT DTYPE DEVICE
"""

import io
import sys
from typing import Annotated, Any

import litserve
import numpy as np
import torch
from fastapi import Depends, Request
from PIL import Image


async def read_body(request: Request) -> bytes:
    return await request.body()


class ImageAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        module = torch.jit.load(sys.argv[1], map_location=device)
        self.preprocess = module.preprocess
        module.to(torch.bfloat16 if sys.argv[3] == "bf16" else torch.float32)
        self.model: Any = torch.jit.freeze(module)
        if device == "cpu":
            self.model = torch.jit.optimize_for_inference(self.model)
        self.device = device

    def decode_request(self, request: Annotated[bytes, Depends(read_body)]) -> torch.Tensor:
        image = np.array(Image.open(io.BytesIO(request)).convert("RGB"))
        pixels: torch.Tensor = self.preprocess(torch.from_numpy(image).permute(2, 0, 1))
        return pixels

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            x = x.to(self.device, memory_format=torch.channels_last)
            probabilities: torch.Tensor = self.model(x).cpu()
        return probabilities

    def unbatch(self, output: torch.Tensor) -> list[tuple[float, int]]:
        best = output.max(1)
        return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))

    def encode_response(self, output: tuple[float, int]) -> dict[str, Any]:
        return {"index": output[1], "probability": output[0]}


if __name__ == "__main__":
    api = ImageAPI(max_batch_size=32, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator=sys.argv[4])
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
