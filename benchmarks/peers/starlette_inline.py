"""A Starlette that decodes and predicts on its event loop, by the service's own engine: one answer at a time, no hops.

python -m benchmarks.peers.starlette_inline MODEL PORT DTYPE DEVICE
"""

import sys
from pathlib import Path

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from benchmarks.bounds import prepared
from models.formats import FORMATS, MAX_PIXELS

if __name__ == "__main__":
    model, port, dtype, device = sys.argv[1:]
    engine = prepared(Path(model), dtype, device, 1)
    (row,) = engine.rows(1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        engine.decode(await Request(scope, receive).body(), FORMATS, MAX_PIXELS, row)
        probability, index = engine.predict([row])[0].max(0)
        told = {"index": int(index), "probability": float(probability)}
        await JSONResponse(told)(scope, receive, send)

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="error",
        access_log=False,
    )
