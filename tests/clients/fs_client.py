"""Operations of file systems for the tests: fs_client.py ENGINE BUCKET OPERATION ARGUMENTS.

ENGINE is the library: s3fs or pyarrow.
"""

import os
import sys

engine, bucket, operation, *arguments = sys.argv[1:]


def s3fs_operations():
    import s3fs

    # Nothing is kept from one operation to the next.
    fs = s3fs.S3FileSystem(
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        key=os.environ["AWS_ACCESS_KEY_ID"],
        secret=os.environ["AWS_SECRET_ACCESS_KEY"],
        config_kwargs={"s3": {"addressing_style": "path"}},
        use_listings_cache=False,
    )
    return {
        "list": lambda prefix: [
            print(path.removeprefix(f"{bucket}/"))
            for path in fs.find(f"{bucket}/{prefix}")
        ],
        "head": lambda key: print(fs.size(f"{bucket}/{key}")),
        "get": lambda key, path: fs.get_file(f"{bucket}/{key}", path),
        "put": lambda path, key: fs.put_file(path, f"{bucket}/{key}"),
        "copy": lambda source, target: fs.cp_file(
            f"{bucket}/{source}", f"{bucket}/{target}"
        ),
        "delete": lambda key: fs.rm_file(f"{bucket}/{key}"),
    }, lambda key: fs.open(f"{bucket}/{key}", "rb")


def pyarrow_operations():
    from pyarrow import fs as arrow

    fs = arrow.S3FileSystem(
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"),
        scheme="http",
        region="us-east-1",
    )

    def list_keys(prefix):
        folder = arrow.FileSelector(f"{bucket}/{prefix}".rstrip("/"), recursive=True)
        for info in fs.get_file_info(folder):
            if info.is_file:
                print(info.path.removeprefix(f"{bucket}/"))

    def head(key):
        info = fs.get_file_info(f"{bucket}/{key}")
        if not info.is_file:
            sys.exit(f"{key}: no such object")
        print(info.size)

    def get(key, path):
        with fs.open_input_file(f"{bucket}/{key}") as source:
            with open(path, "wb") as target:
                while piece := source.read(4 << 20):
                    target.write(piece)

    def put(path, key):
        with open(path, "rb") as source:
            with fs.open_output_stream(f"{bucket}/{key}") as target:
                while piece := source.read(4 << 20):
                    target.write(piece)

    return {
        "list": list_keys,
        "head": head,
        "get": get,
        "put": put,
        "copy": lambda source, target: fs.copy_file(
            f"{bucket}/{source}", f"{bucket}/{target}"
        ),
        "delete": lambda key: fs.delete_file(f"{bucket}/{key}"),
    }, lambda key: fs.open_input_file(f"{bucket}/{key}")


operations, open_object = {"s3fs": s3fs_operations, "pyarrow": pyarrow_operations}[
    engine
]()


def get_range(key, start, end, path):
    with open_object(key) as source:
        source.seek(int(start))
        length = -1 if end == "end" else int(end) - int(start) + 1
        with open(path, "wb") as target:
            target.write(source.read(length) if length >= 0 else source.read())


operations["range"] = get_range
operations[operation](*arguments)
