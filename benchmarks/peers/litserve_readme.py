"""Stock LitServe as its README shows a server: one request at a time, JSON in and out.

python -m benchmarks.peers.litserve_readme MODEL PORT DEVICE
"""

import base64
import io
import sys
from typing import Any

import litserve
import numpy as np
import torch
from PIL import Image


class ImageAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.device = device
        self.model: Any = torch.jit.load(sys.argv[1], map_location=device)

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        image = np.array(Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB"))
        pixels: torch.Tensor = self.model.preprocess(torch.from_numpy(image).permute(2, 0, 1))
        return pixels.to(self.device)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            probabilities: torch.Tensor = self.model(x[None])[0]
        return probabilities

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        index = int(output.argmax())
        return {"index": index, "probability": float(output[index])}


if __name__ == "__main__":
    server = litserve.LitServer(ImageAPI(), accelerator=sys.argv[3])
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
