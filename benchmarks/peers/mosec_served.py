"""mosec, raw JPEG bytes in; one stage of N workers that decode and predict, or N that decode and M that predict (N+M).

PEER_MODEL=model.pt PEER_DTYPE=fp32 PEER_DEVICE=cpu PEER_LAYOUT=2 python -m benchmarks.peers.mosec_served
"""

import io
import os
from typing import Any

import mosec
import numpy as np
import torch
from PIL import Image

MODEL, DTYPE, DEVICE = os.environ["PEER_MODEL"], os.environ["PEER_DTYPE"], os.environ["PEER_DEVICE"]
LAYOUT = [int(number) for number in os.environ["PEER_LAYOUT"].split("+")]  # workers of each stage
BATCH, WAIT_MS = 32, 1


class Decode(mosec.Worker):
    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.preprocess = torch.jit.load(MODEL).preprocess

    def deserialize(self, data: bytes) -> torch.Tensor:
        image = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        pixels: torch.Tensor = self.preprocess(torch.from_numpy(image).permute(2, 0, 1))
        return pixels

    def serialize_ipc(self, data: torch.Tensor) -> bytes:
        return super().serialize_ipc(data.numpy())

    def forward(self, data: Any) -> Any:
        return data


class Predict(mosec.Worker):
    def __init__(self) -> None:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // LAYOUT[-1]))
        module = torch.jit.load(MODEL, map_location=DEVICE)
        self.preprocess = module.preprocess
        self.model: Any = torch.jit.freeze(module.to(torch.bfloat16 if DTYPE == "bf16" else torch.float32))
        if DEVICE == "cpu":
            self.model = torch.jit.optimize_for_inference(self.model)

    def forward(self, data: list[Any]) -> list[dict[str, Any]]:
        with torch.inference_mode():
            pixels = torch.stack([torch.as_tensor(image) for image in data])
            best = self.model(pixels.to(DEVICE, memory_format=torch.channels_last)).cpu().max(1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"index": index, "probability": probability} for index, probability in pairs]


class Both(Predict):
    deserialize = Decode.deserialize


if __name__ == "__main__":
    server = mosec.Server()
    if len(LAYOUT) > 1:
        server.append_worker(Decode, num=LAYOUT[0], route="/predict")
    last = Predict if len(LAYOUT) > 1 else Both
    server.append_worker(last, num=LAYOUT[-1], max_batch_size=BATCH, max_wait_time=WAIT_MS, route="/predict")
    server.run()
