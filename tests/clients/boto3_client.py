"""Operations of boto3 for the tests: boto3_client.py ENGINE BUCKET OPERATION ARGUMENTS.

ENGINE is the transfer manager: classic or crt.
"""

import os
import sys

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

engine, bucket, operation, *arguments = sys.argv[1:]
s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))


class Classic:
    """The transfer manager in Python."""

    config = TransferConfig(
        preferred_transfer_client="classic",
        multipart_threshold=8 << 20,
        multipart_chunksize=8 << 20,
    )

    def download(self, key, path):
        s3.download_file(bucket, key, path, Config=self.config)

    def upload(self, path, key):
        s3.upload_file(path, bucket, key, Config=self.config)


class Crt:
    """The transfer manager in C, without TLS, which boto3 itself cannot turn off."""

    def manager(self):
        from s3transfer import crt

        session = botocore.session.get_session()
        region = os.environ["AWS_REGION"]
        serializer = crt.BotocoreCRTRequestSerializer(
            session,
            {"region_name": region, "endpoint_url": os.environ["AWS_ENDPOINT_URL"]},
        )
        credentials = crt.BotocoreCRTCredentialsWrapper(session.get_credentials())
        client = crt.create_s3_crt_client(
            region=region,
            crt_credentials_provider=credentials.to_crt_credentials_provider(),
            use_ssl=False,
        )
        return crt.CRTTransferManager(
            crt_s3_client=client, crt_request_serializer=serializer
        )

    def download(self, key, path):
        with self.manager() as manager:
            manager.download(bucket, key, path).result()

    def upload(self, path, key):
        with self.manager() as manager:
            manager.upload(path, bucket, key).result()


transfers = {"classic": Classic, "crt": Crt}[engine]()


def list_keys(prefix):
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": 2}
    )
    for page in pages:
        for item in page.get("Contents", []):
            print(item["Key"])


def head(key):
    print(s3.head_object(Bucket=bucket, Key=key)["ContentLength"])


def get(key, path):
    transfers.download(key, path)


def get_range(key, start, end, path):
    wanted = f"bytes={start}-" + ("" if end == "end" else end)
    body = s3.get_object(Bucket=bucket, Key=key, Range=wanted)["Body"]
    with open(path, "wb") as file:
        for piece in body.iter_chunks(1 << 20):
            file.write(piece)


def put(path, key):
    transfers.upload(path, key)


def copy(source, target):
    s3.copy({"Bucket": bucket, "Key": source}, bucket, target)


def delete(key):
    s3.delete_object(Bucket=bucket, Key=key)


operations = {
    "list": list_keys,
    "head": head,
    "get": get,
    "range": get_range,
    "put": put,
    "copy": copy,
    "delete": delete,
}
operations[operation](*arguments)
