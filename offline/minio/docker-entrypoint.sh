#!/bin/sh
# As in MinIO's own image: `server /data` and `minio server /data` are the same.
if [ "${1:-}" != minio ]; then
    set -- minio "$@"
fi
exec "$@"
