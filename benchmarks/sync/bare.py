"""The least that obstore needs to upload a folder: no plan, no digests, no conditions, no resuming."""

import asyncio
import os
import sys
from pathlib import Path

from obstore.store import S3Store

FILES_AT_ONCE = 32


async def upload(folder: Path, bucket: str) -> None:
    store = S3Store(
        bucket,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )
    gate = asyncio.Semaphore(FILES_AT_ONCE)

    async def put(path: Path) -> None:
        async with gate:
            await store.put_async(path.name, path)

    await asyncio.gather(*(put(path) for path in folder.iterdir()))


if __name__ == "__main__":
    asyncio.run(upload(Path(sys.argv[1]), sys.argv[2]))
    os._exit(0)  # obstore's threads now and then abort an interpreter that ends as it should
