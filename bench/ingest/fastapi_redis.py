"""FastAPI on uvicorn (httptools, uvloop) and redis-py. It does not verify, which is to its advantage."""

import uvicorn
from fastapi import FastAPI, Request, Response
from redis.asyncio import Redis

from bench.ingest.plain import PORT, REDIS_URL

app = FastAPI()
redis = Redis.from_url(REDIS_URL)


@app.post("/callbacks")
async def callbacks(request: Request) -> Response:
    await redis.xadd("callbacks", {"body": await request.body()})
    return Response()


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, access_log=False, log_level="warning")
